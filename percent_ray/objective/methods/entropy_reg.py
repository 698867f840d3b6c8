"""Entropy regularisation, a baseline: an entropy is a term of the loss."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le

from percent_ray.objective.methods.base import Shaped, Signals, normalized
from percent_ray.objective.methods.pec import Pec


@dataclass(frozen=True)
class EntropyReg:
    """Entropy regularisation: loss - alpha H. Without spaces H is the policy's own, -log pi; with
    spaces it is perceptual, which is PEC's native form (docs/method.md, "Baselines")."""

    name: Literal["entropy_reg"] = "entropy_reg"
    spaces: tuple[str, ...] = ()
    """Scorers whose perceptual log-prob is used; none is the policy's own."""
    strength: Annotated[float, Ge(1e-9), Le(1e6)] = 1e-3
    """Weight alpha of the entropy in the loss."""

    def __call__(self, s: Signals) -> Shaped:
        if self.spaces:
            return Pec(spaces=self.spaces, strength=self.strength, native=True)(s)
        plain = normalized(s, s.rewards)
        alpha = torch.full_like(s.log_prob, self.strength)
        return replace(plain, weights=replace(plain.weights, log_prob=alpha))
