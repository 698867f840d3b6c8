"""The law R = -a exp(-H) + b between reward and perceptual entropy, and how sure its fit is
(docs/method.md, "The law")."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""Of the intervals."""
FEWEST = 3
"""Probes that a fit needs: two always lie on a line."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Law:
    """A least-squares fit over the probes of a training.

    Intervals are Student's t, as if probes were independent: neighbours of one training are not, so
    that the true ones are wider.
    """

    a: float
    a_interval: Interval
    b: float
    b_interval: Interval
    r2: float
    x: np.ndarray
    """exp(-H) of the probes [n], in order."""
    rewards: np.ndarray
    """Those of the probes, there."""
    y: np.ndarray
    """Reward by the fit, there."""
    band: np.ndarray
    """Half of the interval of y, there."""

    @property
    def sure(self) -> bool:
        """Whether the sign of a is told from 0."""
        return self.a_interval[0] > 0 or self.a_interval[1] < 0


def law(entropies: Float[np.ndarray, " n"], rewards: Float[np.ndarray, " n"]) -> Law | None:
    """The fit to probes, entropies H = -E log p in nats a dimension, of which the paper plots
    minus; pairs that are not finite are left out. None for fewer than `FEWEST` of them, and where
    the entropy never changes."""
    import torch
    from scipy.stats import t

    from percent_ray.objective.entropy import fit_law

    whole = np.isfinite(entropies) & np.isfinite(rewards)
    h, r = (values[whole].astype(np.float64) for values in (entropies, rewards))
    if len(h) < FEWEST or not np.ptp(h) > 0:
        return None
    a, b, r2 = fit_law(torch.tensor(-h), torch.tensor(r))
    x = np.exp(-h)
    spread = x - x.mean()
    squares = np.square(spread).sum()
    noise = np.square(r - (b - a * x)).sum() / (len(x) - 2)
    quantile = t.ppf((1 + LEVEL) / 2, len(x) - 2)
    of_a = quantile * np.sqrt(noise / squares)
    of_b = quantile * np.sqrt(noise * (1 / len(x) + x.mean() ** 2 / squares))
    order = np.argsort(x)
    band = quantile * np.sqrt(noise * (1 / len(x) + np.square(spread[order]) / squares))
    return Law(
        a=a,
        a_interval=(float(a - of_a), float(a + of_a)),
        b=b,
        b_interval=(float(b - of_b), float(b + of_b)),
        r2=r2,
        x=x[order],
        rewards=r[order],
        y=b - a * x[order],
        band=band,
    )
