"""What is left of a machine while workers are placed on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

Resources = Mapping[str, float]
"""CPU, GPU, and bytes of memory."""
GIB = 1024**3
EPS = 1e-6


@dataclass(slots=True)
class Room:
    """One machine. A part of a card lies on one card, so that two cards have room for two workers
    of 0.6 each and not for three."""

    cpus: float
    memory: float
    cards: list[float]
    """The share of each GPU."""

    @staticmethod
    def of(has: Resources) -> "Room":
        """Of what a machine has, or of what is free of it: Ray does not say how a free share lies
        on the cards, and it is taken to lie on as few as can be."""
        gpus = has.get("GPU", 0.0)
        cards = [1.0] * int(gpus + EPS)
        if gpus - len(cards) > EPS:
            cards.append(gpus - len(cards))
        return Room(has.get("CPU", 0.0), has.get("memory", 0.0), cards)

    def take(self, need: Resources) -> bool:
        """Make place for one worker, where there is any."""
        cpus, memory, gpus = (need.get(name, 0.0) for name in ("CPU", "memory", "GPU"))
        share = min(gpus, 1.0)
        cards = sorted(card for card in self.cards if card >= share - EPS)
        count = math.ceil(gpus - EPS)
        if self.cpus < cpus - EPS or self.memory < memory * (1 - EPS) or len(cards) < count:
            return False
        for card in cards[:count]:
            self.cards.remove(card)
            self.cards.append(card - share)
        self.cpus -= cpus
        self.memory -= memory
        return True
