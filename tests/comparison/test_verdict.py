from dataclasses import replace

import numpy as np
import pytest

from percent_ray.comparison import results, verdict
from tests.comparison import fabricated


def test_the_interval_of_a_difference_is_welchs():
    from scipy.stats import t

    a, b = [0.9, 0.8, 0.85], [0.5, 0.6]
    sa, sb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 2
    free = (sa + sb) ** 2 / (sa**2 / 2 + sb**2)
    half = t.ppf(0.975, free) * np.sqrt(sa + sb)
    expected = np.mean(a) - np.mean(b)
    assert verdict.interval(a, b) == pytest.approx((expected - half, expected + half))
    assert verdict.interval(a, [0.5]) is None
    assert verdict.interval([0.5, 0.5], [0.4, 0.4]) is None


def test_in_short_tells_one_seed_and_a_space_that_was_trained_on(tmp_path):
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    read = results.read(plan)
    first = replace(
        read,
        runs={name: runs[:1] for name, runs in read.runs.items()},
        trained_on={**read.trained_on, "ours": frozenset({"clip"})},
    )
    _, clip, dino, sure = verdict.in_short(first)
    assert (
        "marginal, which was trained on that space (of those that were not, PEC keeps most, 66%), "
        "keeps 94% of the base" in clip
    )
    assert "trained on" not in dino
    assert "interval" not in clip
    assert sure.startswith("How sure: not at all, one seed has no interval")
    mixed = {**read.runs, "ours": read.runs["ours"][:1]}
    assert verdict.in_short(replace(read, runs=mixed))[3] == sure
