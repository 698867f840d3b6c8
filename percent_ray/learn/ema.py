"""The exponential moving average of the trained weights, by Flow-GRPO's rule."""

import torch
from torch import Tensor

from percent_ray.learn.engine import Engine


def decay(step: int, cap: float) -> float:
    """min(cap, (1 + t) / (10 + t)) after t optimizer steps: short memory first, then the cap's."""
    return min(cap, (1 + step) / (10 + step))


class Ema:
    """Average of the trained weights, moved every `every` optimizer steps. Held in float32 on rank
    0's CPU and fed by whole gathered weights, so that it is the same under every ZeRO stage."""

    def __init__(self, engine: Engine, *, cap: float, every: int) -> None:
        self.steps = 0
        """Optimizer steps seen."""
        self._engine = engine
        self._cap = cap
        self._every = every
        weights = engine.gather()
        self.weights: dict[str, Tensor] | None = None
        """None on all ranks but 0."""
        if weights is not None:
            self.weights = {name: weight.float() for name, weight in weights.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take notice of one optimizer step. Every rank enters."""
        self.steps += 1
        if self.steps % self._every:
            return
        new = self._engine.gather()
        if self.weights is not None and new is not None:
            for name, average in self.weights.items():
                average.lerp_(new[name].float(), 1 - decay(self.steps, self._cap))

    def load(self, steps: int, weights: dict[str, Tensor]) -> None:
        """Continue from the `steps` and `weights` of another one. Every rank enters."""
        self.steps = steps
        if self.weights is not None:
            self.weights = weights
