"""From measured numbers to the paper's averages, and along a training to a frontier.

(arXiv 2605.12112, section 5). Pure numpy; a row is a method, a column is a metric.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

FRONTIER_POINTS = 3
"""Evaluations that a frontier is fitted to, at the least."""


def normalized_average(rows: ArrayLike) -> NDArray[np.float64]:
    """Norm.Avg of each row: min-max over the rows of the table, column by column, then the mean.

    `rows` is [n rows, n metrics], a larger number being better in every column; returns float64
    [n rows] in 0..1. A row's average depends on the rows that it stands with. A column in which all
    rows are equal tells nothing and counts 0 for all.
    Raises ValueError for a table that is not 2-dimensional, has no cells, or has one not finite.
    """
    table = np.asarray(rows, np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"a table needs rows and metrics, got an array of shape {table.shape}")
    if not np.isfinite(table).all():
        bad = np.argwhere(~np.isfinite(table)).tolist()
        raise ValueError(f"cells {bad} (row, metric) of the table are not finite; leave them out")
    low = table.min(axis=0)
    spread = table.max(axis=0) - low
    return ((table - low) / np.where(spread > 0, spread, 1.0)).mean(axis=1)


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds; the std is unbiased (ddof 1), None for one seed."""
    seeds = np.asarray(values, np.float64)
    return float(seeds.mean()), float(seeds.std(ddof=1)) if len(seeds) > 1 else None


def at_reward(
    rewards: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], level: float
) -> float | None:
    """What `values` were when a training first reached `level`, linear between evaluations.

    None where it never has, and where it began above it. Methods that stand at the same reward
    compare; methods at the same step do not, since a slow one has lost less of everything.
    """
    for i, reward in enumerate(rewards):
        if reward < level:
            continue
        if i == 0:
            return float(values[0]) if reward == level else None
        share = (level - rewards[i - 1]) / (reward - rewards[i - 1])
        return float(values[i - 1] + share * (values[i] - values[i - 1]))
    return None


def frontier_fit(
    rewards: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> tuple[NDArray[np.float64], float]:
    """How `values` fall as reward is gained: (c, R²) of values = c_1 gain + c_2 gain^2.

    Both are counted from the base model, where they are 0. Raises ValueError for fewer than
    `FRONTIER_POINTS` evaluations.
    """
    if len(rewards) < FRONTIER_POINTS:
        raise ValueError(f"a frontier needs {FRONTIER_POINTS} evaluations, got {len(rewards)}")
    powers = np.stack([rewards, rewards**2], axis=1)
    coefficients = np.linalg.lstsq(powers, values, rcond=None)[0]
    residual = values - powers @ coefficients
    r2 = 1 - np.square(residual).mean() / values.var() if values.var() > 0 else 1.0
    return coefficients, float(r2)
