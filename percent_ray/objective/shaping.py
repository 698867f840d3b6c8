"""Perceptual terms added to the reward, before the group normalisation. PAPER section 3.

Every term has the sign that `shape` adds: a larger term is a larger reward.
"""

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

Omega = Literal["uniform", "variance"]
"""How steps are weighted: all alike, or by s_i^2, which leaves the sum of ||d phi||^2 and keeps
late, noisy steps from dominating."""


def step_weights(std: Float[Tensor, " S"], omega: Omega) -> Float32[Tensor, " S"]:
    """omega_i over the scored steps, of mean 1 (PAPER sections 3 and 6)."""
    if omega == "uniform":
        return torch.ones_like(std, dtype=torch.float32)
    if omega == "variance":
        variance = std.float().square()
        return variance / variance.mean()
    raise ValueError(f"unknown omega {omega!r}; set it to 'uniform' or 'variance'")


def pec_term(
    log_p_perc: Float32[Tensor, "*n S"], omega: Float32[Tensor, " S"]
) -> Float32[Tensor, "*n"]:
    """PEC: 1/T sum_i omega_i (-log p_perc,i), to raise perceptual entropy (PAPER eqs. 16-21)."""
    return -(omega * log_p_perc).mean(dim=-1)


def pcvae_term(
    log_p_perc: Float32[Tensor, "*n S"],
    log_p_old: Float32[Tensor, "*n S"],
    omega: Float32[Tensor, " S"],
) -> Float32[Tensor, "*n"]:
    """PCVAE: -1/T sum_i omega_i (log p_perc,i - log pi_old,i) (PAPER eqs. 16-21).

    It lowers KL(p_perc || pi): the perceptual space stays consistent with the VAE's.
    """
    return -(omega * (log_p_perc - log_p_old)).mean(dim=-1)


def relative_lambda(
    rewards: Float32[Tensor, "G K"], terms: Float32[Tensor, "G K"], rel: float
) -> float:
    """lambda = rel std(r) / std(term), stds pooled within the groups given (PAPER section 6).

    Raises ValueError where rewards or terms do not vary within any group.
    """
    spread = {"rewards": _pooled_std(rewards), "perceptual terms": _pooled_std(terms)}
    for name, std in spread.items():
        if not std > 0:
            raise ValueError(
                f"the {name} of {rewards.shape[0]} groups of {rewards.shape[1]} have std {std} "
                "within groups: measure lambda on more groups, or set an absolute one"
            )
    return rel * spread["rewards"] / spread["perceptual terms"]


def shape(
    rewards: Float32[Tensor, "*n"], terms: Float32[Tensor, "*n"], lam: float
) -> Float32[Tensor, "*n"]:
    """Shaped rewards r + lambda term (PAPER eqs. 16-21)."""
    return rewards + lam * terms


def _pooled_std(values: Tensor) -> float:
    """Root of the mean over groups of the population variance within a group."""
    return values.double().var(dim=1, correction=0).mean().sqrt().item()
