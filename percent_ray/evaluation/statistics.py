"""How sure a mean over prompts is, and whether two rows differ.

Prompts are the sample: the pictures of a prompt are not independent of each other. Resampling is
seeded, so that the same numbers give the same intervals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

RESAMPLES = 4999
LEVEL = 0.95
"""Of every interval."""
FEWEST = 8
"""Prompts that an interval needs: the percentile bootstrap of 2 covers the mean half of the time,
of 8 nine times in ten."""
PAIRS = 2
"""Prompts that the test needs, which goes through all swaps of few."""
BATCH = 200
"""Resamples at a time: what they take of memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts. `low` and `high` are None where there are fewer than `FEWEST`."""

    mean: float
    low: float | None
    high: float | None
    prompts: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two rows on the prompts that both have."""

    mean: float
    """Of the first minus the second."""
    low: float | None
    high: float | None
    p: float | None
    """Of a two-sided permutation test that swaps the rows prompt by prompt. Not corrected for how
    many tests a table has."""
    prompts: int


ByPrompt = Mapping[str, Float64[np.ndarray, " P"]]
"""Each prompt's numbers by name; nan where a prompt has none."""


def estimates(values: ByPrompt) -> dict[str, Estimate]:
    """Mean of each over the prompts that have it, with its percentile bootstrap; names without any
    are left out."""
    found: dict[str, Estimate] = {}
    for names, table in _alike(values):
        means, (low, high) = table.mean(axis=1), _intervals(table)
        for i, name in enumerate(names):
            found[name] = Estimate(float(means[i]), low[i], high[i], table.shape[1])
    return {name: found[name] for name in values if name in found}


def differences(first: ByPrompt, second: ByPrompt) -> dict[str, Difference]:
    """Paired, of the numbers that both rows have of some prompt.

    Raises ValueError for rows of different prompts.
    """
    pairs: dict[str, Float64[np.ndarray, " P"]] = {}
    for name in (name for name in first if name in second):
        if first[name].shape != second[name].shape:
            raise ValueError(
                f"{len(first[name])} and {len(second[name])} prompts do not pair ({name})"
            )
        pairs[name] = first[name] - second[name]
    found: dict[str, Difference] = {}
    for names, table in _alike(pairs):
        means, (low, high), p = table.mean(axis=1), _intervals(table), _p_values(table)
        for i, name in enumerate(names):
            found[name] = Difference(float(means[i]), low[i], high[i], p[i], table.shape[1])
    return {name: found[name] for name in pairs if name in found}


def _alike(values: ByPrompt) -> Iterator[tuple[list[str], Float64[np.ndarray, "M n"]]]:
    """Names that the same prompts have, and their numbers: resampled together, a table of many
    columns takes as long as one of few."""
    groups: dict[bytes, list[str]] = {}
    for name, each in values.items():
        if np.isfinite(each).any():
            groups.setdefault(np.isfinite(each).tobytes(), []).append(name)
    for names in groups.values():
        there = np.isfinite(values[names[0]])
        yield names, np.stack([values[name][there] for name in names])


def _intervals(
    table: Float64[np.ndarray, "M n"],
) -> tuple[Sequence[float | None], Sequence[float | None]]:
    """Of the mean of each row of a table."""
    from scipy.stats import bootstrap

    if table.shape[1] < FEWEST:
        return [None] * len(table), [None] * len(table)
    interval = bootstrap(
        (table,),
        np.mean,
        axis=1,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return np.atleast_1d(interval.low).tolist(), np.atleast_1d(interval.high).tolist()


def _p_values(table: Float64[np.ndarray, "M n"]) -> Sequence[float | None]:
    from scipy.stats import permutation_test

    if table.shape[1] < PAIRS:
        return [None] * len(table)
    # Swapping a pair turns its difference round. With few prompts scipy goes through all swaps.
    found = permutation_test(
        (table,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        axis=1,
        rng=np.random.default_rng(0),
    )
    return np.atleast_1d(found.pvalue).tolist()
