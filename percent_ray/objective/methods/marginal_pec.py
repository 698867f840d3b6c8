"""Marginal PEC, ours: the entropy of the group's finished images is part of the reward."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from percent_ray.objective import diversity
from percent_ray.objective.methods.base import (
    Shaped,
    Signals,
    normalized,
    shuffle,
    term_metrics,
)
from percent_ray.objective.strength import State, calibrated, held

START = 0.5
"""Relative strength at which `auto` begins."""


@dataclass(frozen=True)
class MarginalPec:
    """PEC with the marginal entropy of the group's finished images (docs/method.md, "Marginal
    entropy").

    `strength: auto` holds the fixed prompts' log Vendi in each space, by a strength of its own,
    where Vendi is `keep` of the base model's (docs/method.md, "Strength"). The entropy of the term
    itself will not do for that: with the median bandwidth its range is one nat, and it hardly falls
    while half of Vendi is lost.
    """

    name: Literal["marginal_pec"] = "marginal_pec"
    image_spaces: tuple[str, ...] = ("dino",)
    """Scorers whose features of finished images are used; better not the reward's own."""
    strength: Annotated[float, Ge(1e-9), Le(1e6)] | Literal["auto"] = 0.6
    """Weight lambda of the term in the reward, or auto."""
    relative: bool = True
    """Strength x std(reward) / std(term), measured over the first steps."""
    keep: Annotated[float, Ge(0.01), Le(1)] = 0.9
    """With strength auto: effective number to hold, share of the base's."""
    shuffled: bool = False
    """Control: the term shuffled among the images of its group."""

    def __call__(self, s: Signals) -> Shaped:
        state, bandwidth = self._bandwidths(s)
        rewards, metrics = s.rewards, dict[str, float]()
        for space in self.image_spaces:
            term = diversity.marginal_terms(s.features[space], bandwidth[space])
            if self.shuffled:
                term = shuffle(s, term)
            weight = START if self.strength == "auto" else self.strength
            if self.relative or self.strength == "auto":
                weight, state = calibrated(state, s.rewards, term, weight, name=space)
            if self.strength == "auto":
                entropy = _probe_entropy(s, space)
                weight, state = held(state, entropy, weight, self.keep, name=space)
            rewards = rewards + weight * term
            metrics |= term_metrics(term, weight, f"_{space}")
        return replace(normalized(s, rewards), state=state, metrics=metrics)

    def _bandwidths(self, s: Signals) -> tuple[State, dict[str, float]]:
        """Squared bandwidths h^2 by space: from the first images that are seen, then kept."""
        state = dict(s.state)
        features = s.features if s.probe is None else s.probe
        for space in self.image_spaces:
            if f"bandwidth/{space}" not in state:
                state[f"bandwidth/{space}"] = diversity.median_bandwidth(features[space])
        return state, {space: state[f"bandwidth/{space}"] for space in self.image_spaces}


def _probe_entropy(s: Signals, space: str) -> float | None:
    """Mean log Vendi of the fixed prompts; None at a step that has not measured it."""
    if s.probe is None:
        return None
    entropies = [diversity.kernel_entropy(images) for images in s.probe[space]]
    return sum(entropies) / len(entropies)
