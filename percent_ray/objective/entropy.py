"""Policy and perceptual entropy as measured on rollouts, and the law that ties them to reward.

PAPER sections 2 and 6. Everything here is computed on fixed old-policy rollouts: it is a reward,
not a loss through the decoder. Entropies are nats a dimension, but for the marginal terms (nats).
"""

import math
from typing import Literal, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow.sde import HALF_LOG_2PI

FeatureScale = Literal["rms", "unit", "none"]
"""`rms`: unit norm x sqrt(D), so RMS 1 a dimension; `unit`: unit norm; `none`: as encoded."""


def scale_features(features: Float[Tensor, "*n D"], scale: FeatureScale) -> Float32[Tensor, "*n D"]:
    """Features as they are scored. PAPER section 6: `rms` puts eq. 12's residual at its size."""
    values = features.float()
    if scale == "none":
        return values
    unit = torch.nn.functional.normalize(values, dim=-1)
    if scale == "unit":
        return unit
    if scale == "rms":
        return unit * math.sqrt(values.shape[-1])
    raise ValueError(f"unknown feature_scale {scale!r}; set it to 'rms', 'unit' or 'none'")


def policy_entropy_estimate(log_probs: Float32[Tensor, "*n"]) -> Float32[Tensor, ""]:
    """Monte Carlo policy entropy -E log pi of `flow_sde` log-probs (PAPER eq. 8).

    `schedule.policy_entropy` has it in closed form; `cps` log-probs lack the constants for it.
    """
    return -log_probs.mean()


def perceptual_log_prob(
    features_next: Float[Tensor, "K S D"],
    features_mean: Float[Tensor, "K S D"],
    std: Float[Tensor, " S"],
) -> Float32[Tensor, "K S"]:
    """log p_perc of x_{i+1} under a Gaussian around mu_i in feature space (PAPER eq. 12).

    Mean over the D features, with the policy's own std s_i of each scored step; features scaled by
    `scale_features`. Raises ValueError for a step without noise.
    """
    if not (std > 0).all():
        raise ValueError(f"a scored step has std 0, std is {std}; score noisy steps only")
    residual = (features_next.float() - features_mean.float()).square().mean(dim=-1)
    std = std.float()
    return -residual / (2 * std.square()) - std.log() - HALF_LOG_2PI


def perceptual_entropy(log_p_perc: Float32[Tensor, "*n"]) -> Float32[Tensor, ""]:
    """H_perc = -E log p_perc over all images and scored steps (PAPER eq. 13)."""
    return -log_p_perc.mean()


def marginal_terms(
    features: Float[Tensor, "*groups K D"], bandwidth_sq: float
) -> Float32[Tensor, "*groups K"]:
    """-log of each image's leave-one-out kernel density among its group (PAPER section 6).

    term_k = -log( 1/(K-1) sum_{j != k} exp(-||phi_k - phi_j||^2 / (2 h^2)) ), for the features of
    the group's final images, unit-norm (`scale_features(..., "unit")`). Their mean estimates the
    entropy of the group's images; 0 where all are the same.
    Raises ValueError for a group of one and for a bandwidth that is not above 0.
    """
    count = features.shape[-2]
    if count < 2:
        raise ValueError(f"the marginal entropy needs 2 images a group, got {count}; set K >= 2")
    if not bandwidth_sq > 0:
        raise ValueError(f"bandwidth_sq is {bandwidth_sq}; it must be above 0")
    exponent = -_squared_distances(features) / (2 * bandwidth_sq)
    others = exponent.masked_fill(
        torch.eye(count, dtype=torch.bool, device=features.device), -torch.inf
    )
    return (math.log(count - 1) - others.logsumexp(dim=-1)).float()


def median_bandwidth(features: Float[Tensor, "*groups K D"]) -> float:
    """h^2: half the median squared distance of two images of one group, over all groups given.

    Features unit-norm, as for `marginal_terms`. Raises ValueError where the median is 0.
    """
    count = features.shape[-2]
    if count < 2:
        raise ValueError(f"a bandwidth needs 2 images a group, got {count}; set K >= 2")
    rows, columns = torch.triu_indices(count, count, offset=1, device=features.device)
    pairs = _squared_distances(features)[..., rows, columns]
    bandwidth_sq = 0.5 * pairs.flatten().quantile(0.5).item()
    if not bandwidth_sq > 0:
        raise ValueError(
            f"the median squared distance of {pairs.numel()} pairs of images is "
            f"{2 * bandwidth_sq}: most images of a group are equal to this encoder"
        )
    return bandwidth_sq


def kernel_entropy(features: Float[Tensor, "N D"]) -> float:
    """Entropy of one prompt's images as a set, in nats: exp of it is their Vendi score.

    -sum l log l over the eigenvalues l of the cosine kernel divided by N, in float64; zero
    eigenvalues are skipped. The D x D dual, which has the same eigenvalues, where N > D.
    Raises ValueError for features that are not finite and for rows of zeros.
    """
    values = features.double()
    norm = values.square().sum(dim=1, keepdim=True).sqrt()
    if not (norm.isfinite() & (norm > 0)).all():
        raise ValueError(
            f"norms of {len(values)} feature vectors run from {norm.min().item()} to "
            f"{norm.max().item()}: all must be finite and above 0; look at the encoder"
        )
    unit = values / norm
    count, width = unit.shape
    kernel = unit.T @ unit if count > width else unit @ unit.T
    # torch ships no types for its linalg.
    found = torch.linalg.eigvalsh(kernel / count)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    eigenvalues = cast(Tensor, found)
    eigenvalues = eigenvalues[eigenvalues > 0]
    return -(eigenvalues * eigenvalues.log()).sum().item()


def fit_law(
    entropies: Float[Tensor, " n"], rewards: Float[Tensor, " n"]
) -> tuple[float, float, float]:
    """Least squares of R = -a exp(H) + b: (a, b, r2) (PAPER eq. 15).

    The published a = 3.13, b = 2.35 belong to H of the sign that the paper plots: -0.70 to -0.76.
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


def _squared_distances(features: Tensor) -> Tensor:
    """float64 [..., K, K], from differences: the distances of near-duplicates matter most."""
    values = features.double()
    return (values.unsqueeze(-2) - values.unsqueeze(-3)).square().sum(dim=-1)
