"""Random draws as pure functions of ids: a lost group, sampled again anywhere, is the same group.

Everything is drawn on the CPU in float32, whatever device the model is on.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

INITIAL = -1
"""The step that stands for the initial noise."""


def generator(*ids: int | str) -> torch.Generator:
    """A CPU generator seeded by a 64-bit hash of `ids`; order matters.

    torch's CPU generator keeps the low 32 bits of a seed, so that one pair of draws in 2^32 is the
    same draw.
    """
    text = "/".join(str(part) for part in ids)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def noise(
    seed: int,
    group_id: int,
    image: int,
    step: int,
    shape: Sequence[int],
    *,
    stream: str = "noise",
) -> Float32[Tensor, "*shape"]:
    """Standard normal noise of one image at one step; `step = INITIAL` is where it starts. Draws of
    another `stream` are independent of these."""
    source = generator(stream, seed, group_id, image, step)
    return torch.randn(tuple(shape), generator=source, dtype=torch.float32, device="cpu")


def group_noise(
    seed: int, group_id: int, images: Sequence[int], step: int, shape: Sequence[int]
) -> Float32[Tensor, " K *shape"]:
    """`noise` of several images of a group, stacked."""
    return torch.stack([noise(seed, group_id, image, step, shape) for image in images])
