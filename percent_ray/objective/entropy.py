"""Policy and perceptual entropy as measured on rollouts, and the law that ties them to reward.

docs/method.md, "Policy entropy" and "Perceptual entropy". Everything here is computed on fixed
old-policy rollouts: it is a reward, not a loss through the decoder. Entropies are nats a dimension.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow.sde import HALF_LOG_2PI, Kind

FeatureScale = Literal["rms", "unit", "none"]
"""`rms`: unit norm x sqrt(D), so RMS 1 a dimension; `unit`: unit norm; `none`: as encoded."""


def scale_features(features: Float[Tensor, "*n D"], scale: FeatureScale) -> Float32[Tensor, "*n D"]:
    """Features as they are scored; `rms` puts the residual of perceptual entropy at the policy's
    own size (docs/method.md, "Perceptual entropy")."""
    values = features.float()
    if scale == "none":
        return values
    unit = torch.nn.functional.normalize(values, dim=-1)
    if scale == "unit":
        return unit
    if scale == "rms":
        return unit * math.sqrt(values.shape[-1])
    raise ValueError(f"unknown feature_scale {scale!r}; set it to 'rms', 'unit' or 'none'")


def policy_entropy(
    log_prob: Float32[Tensor, "*n S"], std: Float[Tensor, " S"], *, kind: Kind
) -> Float32[Tensor, ""]:
    """Measured policy entropy -E log pi_old over drawn latents and steps (arXiv 2605.12112, eq. 8).

    `log_prob` as `Transition.log_prob` has it.
    """
    return -whole_log_prob(log_prob, std, kind=kind).double().mean().float()


def whole_log_prob(
    log_prob: Float32[Tensor, "*n S"], std: Float[Tensor, " S"], *, kind: Kind
) -> Float32[Tensor, "*n S"]:
    """log pi of each step. That of `cps` lacks the variance and the constants, which the steps'
    `std` puts back; that of the others is whole as `Transition.log_prob` has it."""
    if kind != "cps":
        return log_prob
    std = std.double()
    return (log_prob / (2 * std.square()) - std.log() - HALF_LOG_2PI).float()


def perceptual_log_prob(
    features_next: Float[Tensor, "K S D"],
    features_mean: Float[Tensor, "K S D"],
    std: Float[Tensor, " S"],
) -> Float32[Tensor, "K S"]:
    """log p_perc of x_{i+1} under a Gaussian around mu_i in feature space (arXiv
    2605.12112, eq. 12).

    Mean over the D features, with the policy's own std s_i of each scored step; features scaled by
    `scale_features`. Raises ValueError for a step without noise.
    """
    if not (std > 0).all():
        raise ValueError(f"a scored step has std 0, std is {std}; score noisy steps only")
    residual = (features_next.float() - features_mean.float()).square().mean(dim=-1)
    std = std.float()
    return -residual / (2 * std.square()) - std.log() - HALF_LOG_2PI


def perceptual_entropy(log_p_perc: Float32[Tensor, "*n"]) -> Float32[Tensor, ""]:
    """H_perc = -E log p_perc over all images and scored steps (arXiv 2605.12112, eq. 13)."""
    return -log_p_perc.mean()


def fit_law(
    entropies: Float[Tensor, " n"], rewards: Float[Tensor, " n"]
) -> tuple[float, float, float]:
    """Least squares of R = -a exp(H) + b: (a, b, r2) (arXiv 2605.12112, eq. 15).

    The published a = 3.13, b = 2.35 belong to H as the paper plots it, E log p, from -0.70 to
    -0.76: minus `perceptual_entropy`.
    Raises ValueError for fewer than 2 different entropies.
    """
    x, y = entropies.double().exp(), rewards.double()
    spread = x - x.mean()
    if len(x) < 2 or not spread.abs().max() > 0:
        raise ValueError(f"the law needs 2 different entropies, got {entropies}")
    slope = (spread * y).sum() / spread.square().sum()
    offset = y.mean() - slope * x.mean()
    residual = (y - slope * x - offset).square().sum()
    total = (y - y.mean()).square().sum()
    r2 = 1 - (residual / total).item() if total > 0 else 1.0
    return -slope.item(), offset.item(), r2
