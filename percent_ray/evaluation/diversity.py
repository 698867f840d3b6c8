"""How different the images of one prompt are, in one encoder's feature space. PAPER section 5."""

import math

from jaxtyping import Float
from torch import Tensor

from percent_ray.objective.entropy import kernel_entropy


def vendi(features: Float[Tensor, "N D"]) -> float:
    """Vendi score: the effective number of different images, from 1 (all the same) to N.

    exp of `objective.entropy.kernel_entropy`, and its ValueErrors.
    """
    return math.exp(kernel_entropy(features))


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
