"""PEC: the perceptual entropy of each transition is part of the reward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float32
from torch import Tensor

from percent_ray.objective import shaping
from percent_ray.objective.methods.base import (
    Shaped,
    Signals,
    columns,
    normalized,
    shuffle,
    step_weights,
    term_metrics,
)
from percent_ray.objective.strength import calibrated


@dataclass(frozen=True)
class Pec:
    """PEC: perceptual entropy is part of the reward (arXiv 2605.12112, eqs. 16-21)."""

    name: Literal["pec"] = "pec"
    spaces: tuple[str, ...] = ("pickscore",)
    """Scorers whose perceptual log-prob is used."""
    strength: Annotated[float, Ge(1e-9), Le(1e6)] = 0.05
    """Weight of the term: lambda in the reward, natively alpha."""
    relative: bool = False
    """Strength x std(reward) / std(term), measured over the first steps."""
    native: bool = False
    """A term of the loss by itself in place of one of the reward."""
    omega: shaping.Omega = "uniform"
    """Weights of the scored steps: equal, or by the step's variance."""
    shuffled: bool = False
    """Control: the term shuffled among the images of its group."""

    def __call__(self, s: Signals) -> Shaped:
        omega = step_weights(s, self.omega)
        return self.shaped(s, [shaping.pec_values(s.log_p_perc[k], omega) for k in self.spaces])

    def shaped(self, s: Signals, values: Sequence[Float32[Tensor, "G K N"]]) -> Shaped:
        """The values of the scored transitions, summed over spaces, go into the reward as their
        mean, or natively into the loss as - alpha rho value."""
        value = torch.stack(list(values)).sum(0)
        if self.shuffled:
            value = shuffle(s, value)
        term, strength, state = value.mean(dim=-1), self.strength, s.state
        if self.native:
            if self.relative:
                raise ValueError(
                    "method.relative is about shaped rewards; set it to false with native"
                )
            # The mean is over all S steps; with N of them scored it is an unbiased estimate.
            scale = strength * s.log_prob.shape[-1] / value.shape[-1]
            score = torch.zeros_like(s.log_prob).scatter(2, columns(s), scale * value)
            plain = normalized(s, s.rewards)
            weights = replace(plain.weights, score=score)
            return replace(plain, weights=weights, metrics=term_metrics(term, strength))
        if self.relative:
            strength, state = calibrated(state, s.rewards, term, strength, name="term")
        shaped = normalized(s, s.rewards + strength * term)
        return replace(shaped, state=state, metrics=term_metrics(term, strength))
