"""DiverseGRPO (arXiv 2512.21514), a rival: images of small clusters are worth more."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from percent_ray.objective.methods.base import Shaped, Signals, normalized, term_metrics
from percent_ray.objective.strength import calibrated

SAME = 1e-6
"""Median squared distance up to which a group is one cluster: what float32 leaves of equal
features."""


@dataclass(frozen=True)
class DiverseGrpo:
    """DiverseGRPO's creativity bonus: R = r + beta sqrt(K / n), n the size of the image's cluster
    among its group's finished images (docs/rivals.md).

    Clusters are spectral, of the affinities exp(-d^2 / (2 sigma^2)). Open in the paper's account
    and chosen here: d is the distance of unit-norm features (published: DreamSim's), sigma^2 half
    of the group's median d^2, and the number of clusters. The penalty of the early steps' means is
    a switch of its own: `objective.kl` with `objective.kl_form mean` and `objective.kl_steps`.
    """

    name: Literal["diverse_grpo"] = "diverse_grpo"
    image_spaces: tuple[str, ...] = ("dino",)
    """Scorers whose features of finished images are clustered, side by side."""
    clusters: Annotated[int, Ge(2), Le(65_536)] = 4
    """Clusters of a group, at most its images."""
    strength: Annotated[float, Ge(1e-9), Le(1e6)] = 0.5
    """Weight beta of the bonus in the reward; published 3 to 5, not relative."""
    relative: bool = True
    """Strength x std(reward) / std(bonus), measured over the first steps."""

    def __call__(self, s: Signals) -> Shaped:
        features = torch.cat([s.features[space] for space in self.image_spaces], dim=-1)
        found = [cluster(images, min(self.clusters, len(images))) for images in features]
        term = torch.stack([bonus(labels) for labels in found])
        weight, state = self.strength, s.state
        if self.relative and term.std(1, correction=0).any():
            weight, state = calibrated(state, s.rewards, term, weight, name="bonus")
        sizes = float(np.mean([len(set(labels)) for labels in found]))
        metrics = {**term_metrics(term, weight), "shaping/clusters": sizes}
        return replace(normalized(s, s.rewards + weight * term), state=state, metrics=metrics)


def bonus(labels: list[int]) -> Float32[Tensor, " K"]:
    """E_i = sqrt(K / n) of each image, n the size of its cluster: 1 where all are in one."""
    sizes = torch.tensor([labels.count(label) for label in labels], dtype=torch.float32)
    return (len(labels) / sizes).sqrt()


def cluster(features: Float32[Tensor, "K D"], count: int) -> list[int]:
    """Spectral clusters of unit-norm features, without a random draw; fewer than there are images.
    All in one where most of them are the same to float32.

    Of the largest eigenvectors of D^-1/2 A D^-1/2. A has its diagonal of ones: without it an image
    that is like no other is never a cluster of its own.
    """
    values = features.double()
    distance = (values.unsqueeze(1) - values.unsqueeze(0)).square().sum(-1)
    rows, columns = torch.triu_indices(len(values), len(values), offset=1)
    median = distance[rows, columns].median().item()
    if median <= SAME or count < 2:
        return [0] * len(values)
    affinity = (-distance / median).exp()
    scale = affinity.sum(1).rsqrt()
    vectors = np.linalg.eigh((scale.unsqueeze(1) * affinity * scale).numpy()).eigenvectors
    return split(vectors[:, -count:]).tolist()


def split(vectors: Float64[np.ndarray, "K C"]) -> Int64[np.ndarray, " K"]:
    """Each row's cluster, of orthonormal eigenvectors (Damle, Minden and Ying, "Simple, direct, and
    efficient multi-way spectral clustering", 2019): C rows that span most volume, by a QR
    factorisation with pivots, stand for the clusters, and a row is of the one that it is most along
    once they are turned to the axes."""
    left, pivots = vectors, list[int]()
    for _ in range(vectors.shape[1]):
        pivots.append(int(np.square(left).sum(1).argmax()))
        unit = left[pivots[-1]] / np.linalg.norm(left[pivots[-1]])
        left = left - np.outer(left @ unit, unit)
    u, _, v = np.linalg.svd(vectors[pivots].T)
    return np.abs(vectors @ u @ v).argmax(1)
