"""The images of a batch: which ones an optimizer step takes, which of them a rank, and in which
micro-batches.

Every image counts the same: a micro-batch's loss is a sum over what is learned from its images
divided by the number of all of it in the whole chunk, on all ranks. So gradients and metrics do not
depend on how a chunk was cut into ranks and micro-batches (but for `signal/gradient` and
`signal/noise`, which compare its parts).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from percent_ray.data import arrow
from percent_ray.flow.noise import generator
from percent_ray.models.base import Condition
from percent_ray.objective.grpo import Weights, stack
from percent_ray.types import ShapedBatch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank learns from at once, on its device: B images."""

    columns: Mapping[str, Tensor]
    """The payload columns that are read, [B, ...], by their names in `data/arrow.py`."""
    weights: Weights
    """Every weight [B, S]."""
    ids: Sequence[tuple[int, int]]
    """(group id, image in its group) of each."""
    first: Int64[Tensor, " B"]
    """Each image's first trained step; 0 in the forward process."""
    condition: Condition
    """Every tensor [B, ...]."""
    padding: bool
    """Learned from with weight 0, so that all ranks have the same number of micro-batches."""


class Images:
    """The images of a batch, numbered through all its groups, read in place from the groups'
    tables. The rows hold them; where a row's payload is None its images are counted and cannot be
    taken.

    Raises ValueError for groups with different numbers of trained steps, and for a payload whose
    rows or steps are not as many as its weights.
    """

    def __init__(self, batch: ShapedBatch, columns: Sequence[str]) -> None:
        self._columns: dict[str, dict[int, Tensor]] = {name: {} for name in columns}
        """By row, as are the two below."""
        self._conditions: dict[int, Condition] = {}
        self._first: dict[int, int] = {}
        self._rows = batch.rows
        self._index: list[tuple[int, int]] = []
        """(row, image in its group)."""
        for number, row in enumerate(batch.rows):
            images, count = row.weights.advantage.shape
            self._index += [(number, image) for image in range(images)]
            payload: pa.Table | None = row.payload
            if payload is None:
                continue
            steps = arrow.steps(payload)
            if payload.num_rows != images:
                raise ValueError(
                    f"group {row.group_id} has {payload.num_rows} images and weights of {images}"
                )
            if count != max(1, len(steps)):
                raise ValueError(
                    f"group {row.group_id} has {len(steps)} trained steps and weights of {count}"
                )
            for name, tensors in self._columns.items():
                tensors[number] = arrow.column(payload, name)
            self._conditions[number] = arrow.unpack(row.condition)
            self._first[number] = steps.start
        counts = {row.weights.advantage.shape[1] for row in batch.rows}
        if len(counts) > 1:
            raise ValueError(f"groups of one step have {sorted(counts)} trained steps")
        self.steps = counts.pop() if counts else 0
        """Weights S of every image."""

    def __len__(self) -> int:
        return len(self._index)

    @property
    def referred(self) -> bool:
        """Whether the loss has a KL to the reference policy."""
        return any(row.weights.kl_reference is not None for row in self._rows)

    def not_finite(self) -> str:
        """What of these images is NaN or infinite, with its group; empty where nothing is of what
        this rank holds."""
        for number, row in enumerate(self._rows):
            held = {name: columns.get(number) for name, columns in self._columns.items()}
            for what, tensors in (
                ("weights", row.weights.present()),
                ("payload", {name: tensor for name, tensor in held.items() if tensor is not None}),
                ("condition", self._conditions.get(number, {})),
            ):
                for name, tensor in tensors.items():
                    if not tensor.isfinite().all():
                        return f"the {name} in the {what} of group {row.group_id}"
        return ""

    def split(self, one: int, other: int) -> bool:
        """Whether two images are of different groups."""
        return self._index[one][0] != self._index[other][0]

    def take(self, numbers: Sequence[int], device: torch.device, *, padding: bool) -> MicroBatch:
        """The images of `numbers`; only they are copied, and only what is learned from."""
        index = [self._index[number] for number in numbers]
        groups = [group for group, _ in index]
        chosen = [self._rows[g].weights.map(lambda weight, k=k: weight[k]) for g, k in index]
        return MicroBatch(
            columns={
                name: torch.stack([tensors[g][k] for g, k in index]).to(device)
                for name, tensors in self._columns.items()
            },
            weights=stack(chosen).map(lambda weight: weight.to(device)),
            ids=[(self._rows[g].group_id, k) for g, k in index],
            first=torch.tensor([self._first[g] for g in groups]),
            condition={
                name: torch.cat([self._conditions[g][name] for g in groups]).to(device)
                for name in self._conditions[groups[0]]
            },
            padding=padding,
        )


def chunks(groups: Sequence[int], updates: int, *, seed: int, version: int) -> list[list[int]]:
    """The images of each optimizer step of the learner step after `version`, out of groups of the
    given sizes: each group's in a random order, the same on every rank, dealt out to `updates`
    parts that are as equal as can be, as are a group's shares of them. In a part images are in the
    order of their groups, so that a rank's share of each is of the same few groups; empty parts
    are left out."""
    source = generator("update", seed, version)
    parts: list[list[int]] = [[] for _ in range(updates)]
    start = 0
    for size in groups:
        for image in torch.randperm(size, generator=source).tolist():
            min(parts, key=len).append(start + image)
        start += size
    return [part for part in parts if part]


def shares(chunk: Sequence[int], *, world: int) -> list[list[int]]:
    """A chunk in order, cut into a part for each rank: all as long as the first, but for the last
    ones."""
    largest = math.ceil(len(chunk) / world)
    return [list(chunk[rank * largest : (rank + 1) * largest]) for rank in range(world)]


def micro_batches(
    chunk: Sequence[int], *, rank: int, world: int, size: int
) -> Iterator[tuple[list[int], bool]]:
    """A rank's share of a chunk in micro-batches of at most `size` images,
    and whether one is padding. Every rank gets the same number of them; one that has run out of
    images takes its first with weight 0, or the chunk's where it has none at all, as ZeRO's
    collective calls wait for all ranks.
    """
    cut = shares(chunk, world=world)
    for first in range(0, len(cut[0]), size):
        images = cut[rank][first : first + size]
        yield (images, False) if images else ((cut[rank] or list(chunk))[:1], True)


def groups_of(
    groups: Sequence[int], parts: Sequence[Sequence[int]], *, rank: int, world: int
) -> list[int]:
    """Numbers of the groups, of the given sizes, that a rank takes an image of in the chunks
    `parts`, padding included: about 1 / `world` of them all."""
    owner = [number for number, size in enumerate(groups) for _ in range(size)]
    taken = [
        owner[image]
        for part in parts
        for images, _ in micro_batches(part, rank=rank, world=world, size=1)
        for image in images
    ]
    return sorted(set(taken))
