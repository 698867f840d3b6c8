"""Signals of random numbers, for the methods' tests."""

from typing import Any

import torch
from torch import Tensor

from percent_ray.objective.methods.base import Signals

G, K, S = 3, 6, 4


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(seed: int, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(normal(seed, *shape), dim=-1)


def signals(
    seed: int = 0, scored: tuple[int, ...] = (0, 1, 2, 3), groups: int = G, **changes: Any
) -> Signals:
    """3 groups of 6 images with 4 trained steps; two spaces, one judge."""
    spaces = ("pickscore", "dino")
    fields: dict[str, Any] = {
        "group_ids": torch.arange(G),
        "rewards": normal(seed, G, K),
        "scores": {"pickscore": normal(seed, G, K), "clip": normal(seed + 1, G, K)},
        "log_prob": normal(seed + 2, G, K, S) - torch.tensor([0.0, 1.0, 2.0, 4.0]),
        "log_p_perc": {
            space: normal(seed + 3 + i, G, K, len(scored)) for i, space in enumerate(spaces)
        },
        "scored": torch.tensor([scored] * groups),
        "std": torch.tensor([0.9, 0.6, 0.4, 0.2]),
        "features": {space: unit(seed + 5 + i, G, K, 8) for i, space in enumerate(spaces)},
        "probe": None,
        "state": {},
        "advantage_std": "group",
        "advantage_clip": 5.0,
        "seed": 1,
    }
    return Signals(**fields | changes)
