"""From the rewards of groups to advantages (docs/method.md, "GRPO")."""

from typing import Literal

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

StdScope = Literal["group", "global"]
"""Whose std divides: each group's own, or that of all rewards of the step (Flow-GRPO's default)."""


SPREAD_EPS = 1e-6
"""Added to a score's spread: well below that of any score, well above float32's rounding of one, so
that images that score alike are not told apart."""


def normalized(scores: Float32[Tensor, " K"]) -> Float32[Tensor, " K"]:
    """(s - group mean) / (std + 1e-6) with the group's population std, for a sum of scores of
    unlike spreads (docs/method.md, "GRPO"). Exactly 0 where all are equal.

    The mean goes, too: divided by a spread that differs from group to group, it would make up most
    of the step's global std.
    """
    values = scores.double()
    spread = values.std(correction=0)
    return ((values - values.mean()) / (spread + SPREAD_EPS)).float()


def advantages(
    rewards: Float32[Tensor, "G K"], *, std: StdScope, eps: float = 1e-4, clip: float = 5.0
) -> Float32[Tensor, "G K"]:
    """A = (r - group mean) / (std + eps) with population std, clamped to +-clip (arXiv
    2605.12112, eq. 3).

    Raises ValueError for a reward that is not finite: such a group has to be dropped, as a made-up
    value would poison the whole group.
    """
    finite = rewards.isfinite().all(dim=1)
    if not finite.all():
        bad = [i for i, fine in enumerate(finite) if not fine]
        raise ValueError(
            f"rewards of {len(bad)} of {len(rewards)} groups are not finite (rows {bad}); "
            "drop these groups before the advantages are taken"
        )
    values = rewards.double()
    centred = values - values.mean(dim=1, keepdim=True)
    if std == "group":
        scale = values.std(dim=1, correction=0, keepdim=True)
    elif std == "global":
        scale = values.std(correction=0)
    else:
        raise ValueError(f"unknown advantage std {std!r}; set it to 'group' or 'global'")
    return (centred / (scale + eps)).clamp(-clip, clip).float()


def zero_std_groups(rewards: Float32[Tensor, "G K"]) -> Bool[Tensor, " G"]:
    """Groups whose rewards are all equal: their advantages are 0 and teach nothing."""
    return (rewards == rewards[:, :1]).all(dim=1)


def advantage_probability_range(
    advantages: Float32[Tensor, "G K"],
) -> tuple[Float32[Tensor, " G"], Float32[Tensor, " G"]]:
    """Largest and smallest p_A = softmax(A) over each group (docs/method.md, "What is measured").

    The distribution that the advantages pull the group towards; 1/K and 1/K is no pull.
    """
    probability = torch.softmax(advantages, dim=1)
    return probability.amax(dim=1), probability.amin(dim=1)
