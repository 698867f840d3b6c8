import itertools

import numpy as np
import pytest
from scipy import stats

from percent_ray.evaluation.statistics import differences, estimates

NAN = np.nan


def numbers(seed, count, *, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, count)


def test_an_interval_is_that_of_the_mean():
    """Near the normal one for many prompts, and narrower with more of them."""
    values = numbers(0, 400)
    found = estimates({"a": values})["a"]
    error = values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    few = estimates({"a": values[:40]})["a"]
    assert few.high - few.low > 2 * (found.high - found.low)


def test_prompts_without_a_number_are_left_out():
    values = {
        "a": np.array([1.0, NAN, 3.0]),
        "none": np.full(3, NAN),
        "one": np.array([NAN, 2, NAN]),
    }
    found = estimates(values)
    assert list(found) == ["a", "one"]
    assert (found["a"].mean, found["a"].prompts) == (2.0, 2)
    assert (found["one"].mean, found["one"].low, found["one"].high) == (2.0, None, None)


def test_few_prompts_have_no_interval():
    """That of the least and the largest of 2 would hold the mean half of the time."""
    values = {"few": np.append(np.arange(7.0), NAN), "more": np.arange(8.0)}
    found = estimates(values)
    assert (found["few"].low, found["few"].prompts) == (None, 7)
    assert found["more"].low is not None
    drawn, held = np.random.default_rng(0), []
    for _ in range(300):
        of = estimates({"a": drawn.normal(size=8)})["a"]
        held.append(of.low < 0 < of.high)
    assert np.mean(held) > 0.85


def test_few_prompts_are_tested_by_all_swaps():
    """Against counting them by hand."""
    first, second = numbers(1, 7, shift=0.8), numbers(2, 7)
    found = differences({"a": first}, {"a": second})["a"]
    pairs = first - second
    signs = np.array(list(itertools.product((1, -1), repeat=7)))
    means = np.abs((signs * pairs).mean(axis=1))
    assert found.p == pytest.approx((means >= abs(pairs.mean()) - 1e-12).mean())
    assert found.mean == pytest.approx(pairs.mean())


def test_a_paired_difference_is_seen_where_an_unpaired_one_is_not():
    prompts = 5 * numbers(3, 200)
    noise = 0.2 * numbers(4, 200)
    found = differences({"a": prompts + noise + 0.1}, {"a": prompts})["a"]
    expected = stats.ttest_1samp(noise + 0.1, 0.0).pvalue
    assert expected < 1e-4
    assert found.p < 1e-3
    assert found.low > 0
    nothing = differences({"a": prompts + noise - noise.mean()}, {"a": prompts})["a"]
    assert nothing.p > 0.9


def test_rows_of_other_prompts_do_not_pair():
    with pytest.raises(ValueError, match="3 and 2 prompts"):
        differences({"a": np.zeros(3)}, {"a": np.zeros(2)})
    only = differences({"a": np.array([1.0, NAN, 2.0])}, {"a": np.array([NAN, 1.0, 1.0])})["a"]
    assert (only.mean, only.p, only.prompts) == (1.0, None, 1)
