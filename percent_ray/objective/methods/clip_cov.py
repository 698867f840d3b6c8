"""Clip-Cov, a baseline: the transitions that drive the entropy down are left out of the loss."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from jaxtyping import Bool
from torch import Tensor

from percent_ray.objective import advantage, covariance
from percent_ray.objective.methods.base import Shaped, Signals, columns, normalized


@dataclass(frozen=True)
class ClipCov:
    """Clip-Cov: the transitions of the largest covariance are left out of the loss. Without spaces
    of the policy's log-prob and the advantage, else of the perceptual one (docs/method.md,
    "Baselines")."""

    name: Literal["clip_cov"] = "clip_cov"
    spaces: tuple[str, ...] = ()
    """Scorers whose perceptual log-prob is used; none is the policy's own."""
    fraction: Annotated[float, Gt(0), Lt(1)] = 0.25
    """Share of the transitions that is acted on."""

    def __call__(self, s: Signals) -> Shaped:
        plain = normalized(s, s.rewards)
        left_out = covarying(s, self.spaces, self.fraction)
        kept = plain.weights.advantage.masked_fill(left_out, 0.0)
        return replace(plain, weights=replace(plain.weights, advantage=kept))


def covarying(s: Signals, spaces: tuple[str, ...], fraction: float) -> Bool[Tensor, "G K S"]:
    """The transitions of the largest covariance. Steps that are not scored have no perceptual
    log-prob and are never among them. Raises ValueError where groups score different steps."""
    advantages = advantage.advantages(s.rewards, std=s.advantage_std, clip=s.advantage_clip)
    if not spaces:
        return covariance.largest(covariance.covariance(s.log_prob, advantages), fraction)
    log_p = torch.stack([s.log_p_perc[space] for space in spaces]).sum(0)
    if s.scored.ne(s.scored[0]).any():
        raise ValueError(
            "covariances are centred for each step, so every group must score the same ones; "
            "set perceptual.steps to 0"
        )
    chosen = covariance.largest(covariance.covariance(log_p, advantages), fraction)
    everywhere = torch.zeros_like(s.log_prob, dtype=torch.bool)
    return everywhere.scatter(2, columns(s), chosen)
