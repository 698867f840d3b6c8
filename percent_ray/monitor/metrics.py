"""Metrics that are added up over micro-batches, ranks and groups, and reduced to a number once.

Names are `stage/what`: `reward/pickscore_mean`, `entropy/perceptual_dino`, `diversity/vendi_dino`,
`time/perceive_s`. A mean of means over unequal parts is wrong; a sum of `Mean`s is right.
"""

import functools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

REWARD = "reward/mean"
POLICY_ENTROPY = "entropy/policy"
PERCEPTUAL_ENTROPY = "entropy/perceptual_"
"""Followed by the name of the space."""
VENDI = "diversity/vendi_"
"""Followed by the name of the space."""
IMAGES_PER_S = "throughput/images_per_s"
STEP_S = "time/step_s"


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of `count` values that add up to `sum`; NaN where there is none."""

    sum: float
    count: float = 1

    def __add__(self, other: Self) -> "Mean":
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Sum:
    """Total."""

    value: float

    def __add__(self, other: Self) -> "Sum":
        return Sum(self.value + other.value)


@dataclass(frozen=True, slots=True)
class Max:
    """Largest value. NaN wins: a maximum must not hide it."""

    value: float

    def __add__(self, other: Self) -> "Max":
        values = (self.value, other.value)
        return Max(math.nan if any(map(math.isnan, values)) else max(values))


Metric = Mean | Sum | Max


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Metrics of all parts added up by name; a part may lack a name.

    Raises ValueError where a name is one kind of metric here and another there.
    """
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, metric in part.items():
            found.setdefault(name, []).append(metric)
    for name, metrics in found.items():
        if len({type(metric) for metric in metrics}) > 1:
            kinds = sorted({type(metric).__name__ for metric in metrics})
            raise ValueError(f"metric {name}: is {' and '.join(kinds)}; give it one kind")
    return {name: functools.reduce(operator.add, metrics) for name, metrics in found.items()}


def reduce(parts: Iterable[Mapping[str, Metric]]) -> dict[str, float]:
    """One number a name."""
    return {name: metric.value for name, metric in merge(parts).items()}


def by_space(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The metrics of every space under `prefix`, by space."""
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
