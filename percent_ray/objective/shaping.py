"""Perceptual terms added to the reward, before the group normalisation (docs/method.md, "PEC and
PCVAE").

A value belongs to one transition, an image's term is the mean of its values over the scored steps.
Both have the sign that a reward adds: a larger term is a larger reward.
"""

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

Omega = Literal["uniform", "variance"]
"""How steps are weighted: all alike, or by s_i^2, which leaves the sum of ||d phi||^2 and keeps
late, noisy steps from dominating."""


def step_weights(std: Float[Tensor, " S"], omega: Omega) -> Float32[Tensor, " S"]:
    """omega_i over the trained steps, of mean 1 (docs/method.md, "PEC and PCVAE")."""
    if omega == "uniform":
        return torch.ones_like(std, dtype=torch.float32)
    if omega == "variance":
        variance = std.float().square()
        return variance / variance.mean()
    raise ValueError(f"unknown omega {omega!r}; set it to 'uniform' or 'variance'")


def pec_values(
    log_p_perc: Float32[Tensor, "*n S"], omega: Float32[Tensor, "*w S"]
) -> Float32[Tensor, "*n S"]:
    """PEC: omega_i (-log p_perc,i), to raise perceptual entropy (arXiv 2605.12112, eqs.
    16-21)."""
    return -omega * log_p_perc


def pcvae_values(
    log_p_perc: Float32[Tensor, "*n S"],
    log_p_old: Float32[Tensor, "*n S"],
    omega: Float32[Tensor, "*w S"],
) -> Float32[Tensor, "*n S"]:
    """PCVAE: -omega_i (log p_perc,i - log pi_old,i) (arXiv 2605.12112, eqs. 16-21).

    It lowers KL(p_perc || pi): the perceptual space stays consistent with the VAE's.
    """
    return -omega * (log_p_perc - log_p_old)
