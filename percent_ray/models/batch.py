"""How many images a decoder takes in one call, so that they fit a GPU."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch

from percent_ray.models.base import Decoder
from percent_ray.recipe.tree import MOST, Runtime

SIZES = (MOST, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""That are chosen from: a little more or less free memory gives the same one again."""
SHARE = 0.8
"""Of the free memory that is planned with; the rest is for the encoders' activations and what an
allocator cannot join."""
GIB = 2**30


class Card(Protocol):
    """A GPU's memory in bytes."""

    def free(self) -> int:
        """What this process can still have."""
        ...

    def peak(self, work: Callable[[], Any]) -> int:
        """The most that `work` has allocated at one time."""
        ...


class Cuda:
    """The `Card` of a CUDA device, of which this process may have a `share`."""

    def __init__(self, device: torch.device, share: float) -> None:
        self._device = device
        self._share = share

    def free(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        allocated = torch.cuda.memory_allocated(self._device)
        cached = torch.cuda.memory_reserved(self._device) - allocated
        return min(free + cached, int(self._share * total) - allocated)

    def peak(self, work: Callable[[], Any]) -> int:
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before


def card(device: torch.device, runtime: Runtime) -> Card | None:
    """Of a perception worker's device: where Ray's workers share a GPU, its part of it; None for a
    CPU."""
    shares = runtime.backend == "ray" and 0 < runtime.perception.gpus < 1
    share = runtime.perception.gpus if shares else 1.0
    return Cuda(device, share) if device.type == "cuda" else None


def choose(
    asked: int | Literal["auto"],
    decoder: Decoder,
    size: tuple[int, int],
    *,
    images: int,
    card: Card | None,
) -> tuple[int, str]:
    """Images of that height and width in one call of a decoder, and for `auto` why so many.

    `images` are decoded one batch after the other and then joined, all of them on the `card`, which
    is None for a CPU. The peak of one image is measured; that of several is taken to be as many
    times as much.
    """
    if asked != "auto":
        return asked, ""
    if card is None:
        return MOST, f"perceptual.batch_size auto: {MOST} images, as always on a CPU"
    latent = decoder.blank(size)
    joined = 2 * images * decoder.decode(latent).nbytes  # a first call, before one is measured
    one, free = card.peak(lambda: decoder.decode(latent)), card.free()
    chosen = next((n for n in SIZES if n * one + joined <= SHARE * free), 1)
    return chosen, (
        f"perceptual.batch_size auto: {chosen} images; one takes {one / GIB:.3g} GiB, all that are "
        f"decoded at once {joined / GIB:.3g}, {free / GIB:.3g} are free"
    )
