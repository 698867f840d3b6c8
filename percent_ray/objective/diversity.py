"""How unlike the images of one prompt are, in one encoder's feature space: as terms of a reward,
and as numbers for people (docs/method.md, "Marginal entropy" and "What is measured")."""

import math
from typing import cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor


def marginal_terms(
    features: Float[Tensor, "*groups K D"], bandwidth_sq: float
) -> Float32[Tensor, "*groups K"]:
    """-log of each image's leave-one-out kernel density among its group (docs/method.md, "Marginal
    entropy").

    term_k = -log( 1/(K-1) sum_{j != k} exp(-||phi_k - phi_j||^2 / (2 h^2)) ), for the features of
    the group's final images, unit-norm (`entropy.scale_features(..., "unit")`). Their mean
    estimates the entropy of the group's images; 0 where all are the same.
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
    unit = _unit(features)
    count, width = unit.shape
    kernel = unit.T @ unit if count > width else unit @ unit.T
    # torch ships no types for its linalg.
    found = torch.linalg.eigvalsh(kernel / count)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    eigenvalues = cast(Tensor, found)
    eigenvalues = eigenvalues[eigenvalues > 0]
    return -(eigenvalues * eigenvalues.log()).sum().item()


def vendi(features: Float[Tensor, "N D"]) -> float:
    """Vendi score: the effective number of different images, from 1 (all the same) to N.

    exp of `kernel_entropy`, and its ValueErrors.
    """
    return math.exp(kernel_entropy(features))


def feature_variance(features: Float[Tensor, "N D"]) -> float:
    """Trace of the features' covariance, unbiased (ddof 1): sets of different size compare.

    Features as encoded, not normalised. Raises ValueError for fewer than 2 images.
    """
    if len(features) < 2:
        raise ValueError(f"a variance needs 2 images or more, got {len(features)}")
    return features.double().var(dim=0, correction=1).sum().item()


def cosine_distance(features: Float[Tensor, "N D"]) -> float:
    """Mean of 1 - cos over all pairs of images: 0 where all point one way.

    From the sum of the unit vectors u: 1 - (|sum u|^2 - N) / (N (N - 1)), in float64. Raises
    ValueError for fewer than 2 images, and as `kernel_entropy`.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"a distance needs 2 images or more, got {count}")
    together = _unit(features).sum(dim=0).square().sum().item()
    return 1 - (together - count) / (count * (count - 1))


def variance_per_dimension(features: Float[Tensor, " N *dims"]) -> float:
    """`feature_variance` divided by the number of dimensions; also for latents and pixels."""
    flat = features.flatten(1)
    return feature_variance(flat) / flat.shape[1]


def _unit(features: Float[Tensor, "N D"]) -> Tensor:
    """Rows of length 1, float64."""
    values = features.double()
    norm = values.square().sum(dim=1, keepdim=True).sqrt()
    if not (norm.isfinite() & (norm > 0)).all():
        raise ValueError(
            f"norms of {len(values)} feature vectors run from {norm.min().item()} to "
            f"{norm.max().item()}: all must be finite and above 0; look at the encoder"
        )
    return values / norm


def _squared_distances(features: Tensor) -> Tensor:
    """float64 [..., K, K], from differences: the distances of near-duplicates matter most."""
    values = features.double()
    return (values.unsqueeze(-2) - values.unsqueeze(-3)).square().sum(dim=-1)
