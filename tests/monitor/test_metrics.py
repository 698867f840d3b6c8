import math

import pytest

from percent_ray.monitor.metrics import Max, Mean, Sum, by_space, reduce


def test_means_over_unequal_parts_are_weighted():
    parts = [{"reward/mean": Mean(6, 3)}, {"reward/mean": Mean(10)}]
    assert reduce(parts) == {"reward/mean": 4.0}


def test_sums_and_maxima():
    assert reduce([{"a": Sum(1), "b": Max(5)}, {"a": Sum(2), "b": Max(3)}]) == {"a": 3, "b": 5}


def test_a_part_may_lack_a_name():
    assert reduce([{"a": Sum(1)}, {}, {"b": Sum(2)}]) == {"a": 1, "b": 2}


def test_a_mean_of_nothing_is_nan():
    assert math.isnan(reduce([{"a": Mean(0, 0)}])["a"])


@pytest.mark.parametrize("order", [(math.nan, 1.0), (1.0, math.nan)])
def test_a_maximum_does_not_hide_nan(order):
    assert math.isnan(reduce([{"a": Max(value)} for value in order])["a"])


def test_one_name_is_one_kind():
    with pytest.raises(ValueError, match="metric a: is Mean and Sum; give it one kind"):
        reduce([{"a": Mean(1)}, {"a": Sum(1)}])


def test_by_space():
    metrics = {"diversity/vendi_dino": 2.0, "diversity/variance_dino": 1.0}
    assert by_space(metrics, "diversity/vendi_") == {"dino": 2.0}
