"""How different the images of one prompt are, in one encoder's feature space. PAPER section 5."""

import torch
from jaxtyping import Float
from torch import Tensor


def vendi(features: Float[Tensor, "N D"]) -> float:
    """Vendi score: the effective number of different images, from 1 (all the same) to N.

    exp(-sum l log l) over the eigenvalues l of the cosine kernel divided by N, in float64; zero
    eigenvalues are skipped. The D x D dual, which has the same eigenvalues, where N > D.
    Raises ValueError for features that are not finite and for rows of zeros.
    """
    values = features.double()
    norm = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    if not (norm.isfinite() & (norm > 0)).all():
        raise ValueError(
            f"norms of {len(values)} feature vectors run from {norm.min().item()} to "
            f"{norm.max().item()}: all must be finite and above 0; look at the encoder"
        )
    unit = values / norm
    count, width = unit.shape
    kernel = unit.T @ unit if count > width else unit @ unit.T
    eigenvalues = torch.linalg.eigvalsh(kernel / count)
    eigenvalues = eigenvalues[eigenvalues > 0]
    return torch.exp(-(eigenvalues * eigenvalues.log()).sum()).item()


def feature_variance(features: Float[Tensor, "N D"]) -> float:
    """Trace of the features' covariance, unbiased (ddof 1): sets of different size compare.

    Features as encoded, not normalised. Raises ValueError for fewer than 2 images.
    """
    if len(features) < 2:
        raise ValueError(f"a variance needs 2 images or more, got {len(features)}")
    return features.double().var(dim=0, correction=1).sum().item()


def variance_per_dimension(features: Float[Tensor, " N *dims"]) -> float:
    """`feature_variance` divided by the number of dimensions; also for latents and pixels."""
    flat = features.flatten(1)
    return feature_variance(flat) / flat.shape[1]
