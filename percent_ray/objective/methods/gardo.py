"""GARDO (arXiv 2512.24138), a rival: unlike good images count more, doubtful ones are held."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float32
from torch import Tensor

from percent_ray.objective import covariance
from percent_ray.objective.advantage import zero_std_groups
from percent_ray.objective.grpo import Weights
from percent_ray.objective.methods.base import Shaped, Signals, over_steps

EPS = 1e-4
"""Beside a std that divides, as in GRPO's advantages."""
SAME = 1e-6
"""Mean distance up to which a group's images are the same: what float32 leaves of 1 - cos 0."""


@dataclass(frozen=True)
class Gardo:
    """GARDO: unlike images that are better than their group are worth more, and only images whose
    reward the judges do not share are held to the reference.

    For A > 0, A = (r - mean) d / mean d, with d an image's least cosine distance to the rest of its
    group, and A = r - mean in a group of identical images; no std divides, but in the forward
    process that of the step. The KL holds the `fraction` of images whose rank by the reward is most
    above their mean rank by the judges. That share follows how far reward and judges are apart, a
    tenth up or down a step: the published rule of "dynamic percentile" is not specified further.
    `objective.reference_every` and `reference_kl` renew the reference.
    """

    name: Literal["gardo"] = "gardo"
    image_spaces: tuple[str, ...] = ("dino",)
    """Scorers whose features of finished images are used."""
    judges: tuple[str, ...] = ("clip",)
    """Scorers whose score is used beside the reward."""
    strength: Annotated[float, Ge(1e-9), Le(1e6)] = 0.04
    """Weight beta of the KL to the reference."""
    fraction: Annotated[float, Gt(0), Le(0.5)] = 0.1
    """Share of the images that the KL holds, at first."""

    def __call__(self, s: Signals) -> Shaped:
        rewards = s.rewards.double()  # in float32 equal ones are not all their mean
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        distance = torch.stack([_nearest(s.features[space]) for space in self.image_spaces]).mean(0)
        unlike = _relative(distance)
        advantage = torch.where(centred > 0, centred * unlike, centred)
        if not s.log_prob.shape[-1]:
            # The forward process has a scale of its own: how far an advantage pulls from v_old.
            advantage = advantage / (advantage.std(correction=0) + EPS)
        advantage = advantage.clamp(-s.advantage_clip, s.advantage_clip)
        judged = torch.stack([_ranks(s.scores[judge]) for judge in self.judges]).mean(0)
        excess = _ranks(s.rewards) - judged
        taught = ~zero_std_groups(s.rewards).unsqueeze(1).expand_as(excess)
        usual, share = s.state.get("gardo/apart"), s.state.get("gardo/share", self.fraction)
        apart = excess[taught].abs().mean().item() if taught.any() else usual
        if usual is not None and apart is not None:
            share *= 1.1 if apart > usual else 1 / 1.1
            apart = 0.9 * usual + 0.1 * apart
        share = min(0.5, max(0.5 * self.fraction, share, 1 / excess.numel()))
        excess = excess[taught]
        held = taught[taught]
        if taught.any():
            held = covariance.largest(excess, max(share, 1 / excess.numel()))
        holding = torch.zeros_like(judged).masked_scatter(taught, held * self.strength)
        weights = Weights(over_steps(s, advantage), kl_reference=over_steps(s, holding))
        state = {"gardo/share": share} | ({} if apart is None else {"gardo/apart": apart})
        return Shaped(s.rewards, weights, {**s.state, **state}, {"gardo/held": share})


def _nearest(features: Float32[Tensor, "G K D"]) -> Float32[Tensor, "G K"]:
    """Each image's least cosine distance to another one of its group; features are unit-norm."""
    count = features.shape[1]
    distance = 1 - features @ features.transpose(1, 2)
    nearest = distance.masked_fill(torch.eye(count, dtype=torch.bool), torch.inf).amin(dim=2)
    return nearest.clamp_min(0)


def _relative(distance: Float32[Tensor, "G K"]) -> Float32[Tensor, "G K"]:
    """d / mean d of each group; 1 where all are the same, which published is 0 / 0."""
    mean = distance.mean(dim=1, keepdim=True)
    return torch.where(mean > SAME, distance / mean.clamp_min(SAME), 1.0)


def _ranks(values: Float32[Tensor, "G K"]) -> Float32[Tensor, "G K"]:
    """Rank of each value in its group, 0 (least) to 1; equal ones share the mean of theirs."""
    one, other = values.unsqueeze(2), values.unsqueeze(1)
    below, equal = (other < one).sum(2), (other == one).sum(2)
    return (below + (equal - 1) / 2).float() / (values.shape[1] - 1)
