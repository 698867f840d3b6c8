"""Which transitions drive the entropy down: Clip-Cov and KL-Cov (docs/method.md, "Baselines")."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor


def covariance(
    log_prob: Float32[Tensor, "G K S"], advantage: Float32[Tensor, "G K"]
) -> Float32[Tensor, "G K S"]:
    """C_i = (log p_i - mean)(A - mean A) of each transition, over the step's G K images.

    Centred for each of the S steps by itself: -log s_i varies by nats from step to step and would
    turn C into a detector of steps. Large and positive where a likely transition is rewarded.
    """
    values, advantages = log_prob.double(), advantage.double()
    centred = values - values.mean(dim=(0, 1))
    return (centred * (advantages - advantages.mean()).unsqueeze(-1)).float()


def largest(values: Float32[Tensor, "*n"], fraction: float) -> Bool[Tensor, "*n"]:
    """The round(fraction n) largest of n values; ties go to the first. Raises ValueError where
    that is none of them, or all."""
    count = round(fraction * values.numel())
    if not 0 < count < values.numel():
        raise ValueError(
            f"a fraction of {fraction} of {values.numel()} transitions is {count}; "
            "set it above 0 and below 1"
        )
    order = values.flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.reshape(values.shape)
