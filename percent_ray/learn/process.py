"""Counting while learning: sums and maxima that wait for nothing, and who fills them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.learn.batch import MicroBatch
from percent_ray.learn.engine import Engine
from percent_ray.metrics import FLOOR_OUTSIDE
from percent_ray.objective.grpo import RatioMetrics
from percent_ray.recipe import tree
from percent_ray.types import ShapedBatch

DEVIATION = "ratio/max_dev"
"""Largest |ratio - 1|; in the first optimizer step 0 but for rounding, where the weights have drawn
the batch themselves."""
FLOOR = "ratio/floor"
"""The same of a learner step's first optimizer step, before the weights change: nothing but
rounding."""
RATIO = ("kl/approx", "ratio/mean", "ratio/clip_low", "ratio/clip_high", "ratio/outside")
"""Means over what has a ratio."""


class Tally:
    """What one optimizer step has learned from, by name, kept on its device."""

    def __init__(
        self, device: torch.device, *, sums: Sequence[str], largest: Sequence[str]
    ) -> None:
        self.names = tuple(sums), tuple(largest)
        self.sums = torch.zeros(1 + len(sums), dtype=torch.float64, device=device)
        """The number of losses, then the sums by name."""
        self.largest = torch.zeros(len(largest), dtype=torch.float64, device=device)

    def add(self, count: int, sums: Mapping[str, Tensor], largest: Mapping[str, Tensor]) -> None:
        """What one pass over `count` images has: 0-d tensors."""
        added = [torch.full_like(self.sums[0], count)]
        added += [sums[name].detach().double() for name in self.names[0]]
        self.sums += torch.stack(added)
        seen = [largest[name].detach().double() for name in self.names[1]]
        self.largest = torch.maximum(self.largest, torch.stack(seen))


class Process(Protocol):
    """How an image is learned from: by a replay of its trajectory, or by flow matching."""

    def columns(self, batch: ShapedBatch) -> Sequence[str]:
        """Those of the payloads that the batch is learned from by."""
        ...

    def begin(self, later: Iterator[MicroBatch]) -> None:
        """Before a learner step's first optimizer step: the micro-batches of its other ones, which
        need not be looked at."""
        ...

    def check(self, first: Mapping[str, float], *, strict: bool) -> Mapping[str, float]:
        """What `reduce` makes of the first optimizer step of a learner step, before its weights
        change, on a batch that they have drawn themselves: what of it is to be logged. Raises
        ValueError where it is `strict`, as a run's first one is, and training would be on
        rounding: later batches may have other sizes, and trained weights other roundings."""
        ...

    def tally(self, device: torch.device) -> Tally:
        """An empty one."""
        ...

    def passes(self, steps: int) -> int:
        """How many losses an image of `steps` weights has."""
        ...

    def losses(self, batch: MicroBatch, tally: Tally) -> Iterator[Float32[Tensor, ""]]:
        """`passes` losses, each the sum over the images, with gradients. Each must have been
        stepped back through before the next is asked for. Adds what is not padding to `tally`."""
        ...


def reduce(tallies: Sequence[Tally], engine: Engine) -> dict[str, float]:
    """What a learner step logs, over all ranks, one tally for each of its optimizer steps: means
    over everything that it has learned from, and the largest values, `a/b` of all optimizer steps
    and `a/first_b` of the first, where the weights are still those that the step began with."""
    sums, largest = tallies[0].names
    total = engine.all_reduce(torch.stack([tally.sums for tally in tallies]).sum(0), "sum")
    count, *values = total.tolist()
    seen = engine.all_reduce(torch.cat([tally.largest for tally in tallies]), "max")
    by_step = seen.reshape(len(tallies), -1).T.tolist()
    found = {name: value / count for name, value in zip(sums, values, strict=True)}
    for name, steps in zip(largest, by_step, strict=True):
        found |= {name: max(steps), name.replace("/", "/first_"): steps[0]}
    return found


def sums_of(ratio: RatioMetrics) -> dict[str, Tensor]:
    """The sums of `RATIO`."""
    sums = (
        ratio.approx_kl_sum,
        ratio.ratio_sum,
        ratio.clip_low_sum,
        ratio.clip_high_sum,
        ratio.outside_sum,
    )
    return dict(zip(RATIO, sums, strict=True))


def floor_of(
    first: Mapping[str, float], objective: tree.Objective, *, strict: bool, why: str, instead: str
) -> dict[str, float]:
    """How far rounding alone moves the ratio, of `Process.check`. Raises ValueError, with `why` and
    what to set `instead`, where `strict` and that is more than half of the clip range."""
    floor, share = first[DEVIATION], first["ratio/outside"]
    clip = min(objective.clip_low, objective.clip_high)
    if strict and floor > clip / 2:  # nan is named where the gradient is looked at
        raise ValueError(
            f"before the first update the ratio is up to {floor:.1e} from 1 ({share:.0%} of what "
            f"is learned from lies outside the clip range): {why} than half of objective.clip_low "
            f"or clip_high, {clip:g}; set {instead}, or a wider clip range"
        )
    return {FLOOR: floor, FLOOR_OUTSIDE: share}
