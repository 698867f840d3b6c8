import numpy as np
import pytest

from percent_ray.evaluation.aggregate import (
    at_reward,
    frontier_fit,
    mean_and_std,
    normalized_average,
)


def test_normalized_average_is_min_max_by_column_then_the_mean():
    rows = [[1.0, 10.0, -1.0], [2.0, 30.0, -3.0], [3.0, 20.0, -1.5]]
    averages = normalized_average(rows)
    assert averages.dtype == np.float64
    np.testing.assert_allclose(averages, [(0 + 0 + 1) / 3, (0.5 + 1 + 0) / 3, (1 + 0.5 + 0.75) / 3])


def test_it_does_not_depend_on_the_metrics_units():
    table = np.random.default_rng(0).random((5, 4))
    again = table * [1e6, 1e-6, 3, 1] + [5, -2, 0, 1e3]
    np.testing.assert_allclose(normalized_average(table), normalized_average(again), atol=1e-6)


def test_a_column_of_equal_cells_tells_nothing():
    np.testing.assert_allclose(normalized_average([[1.0, 7.0], [2.0, 7.0]]), [0.0, 0.5])


@pytest.mark.parametrize("rows", [[1.0, 2.0], np.zeros((0, 3)), np.zeros((3, 0))])
def test_what_is_no_table_is_refused(rows):
    with pytest.raises(ValueError, match="a table needs rows and metrics"):
        normalized_average(rows)


def test_a_cell_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"cells \[\[1, 0\]\] \(row, metric\)"):
        normalized_average([[1.0, 2.0], [np.nan, 3.0]])


def test_mean_and_std_over_seeds():
    assert mean_and_std([1.0, 3.0]) == (2.0, pytest.approx(np.sqrt(2)))
    assert mean_and_std([1.5]) == (1.5, None)


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.5, None), (0.6, 9.0), (0.7, 7.5), (0.8, 6.0), (0.85, 4.25), (0.95, None)],
)
def test_values_at_the_first_crossing_of_a_reward(level, expected):
    """The reward falls back at the third point: what counts is where it was first reached."""
    rewards, values = np.array([0.6, 0.8, 0.7, 0.9]), np.array([9.0, 6.0, 5.0, 4.0])
    value = at_reward(rewards, values, level)
    assert value == (None if expected is None else pytest.approx(expected))


def test_the_crossing_is_linear_between_checkpoints():
    rewards, values = np.array([0.0, 1.0]), np.array([10.0, 2.0])
    assert at_reward(rewards, values, 0.25) == pytest.approx(8.0)


def test_a_frontier_through_the_base_is_found_again_and_says_what_reward_explains():
    gains = np.linspace(0.0, 0.03, 7)
    lost = -4.0 * gains - 90.0 * gains**2
    coefficients, r2 = frontier_fit(gains, lost)
    np.testing.assert_allclose(coefficients, [-4.0, -90.0])
    assert r2 == pytest.approx(1.0)
    level = frontier_fit(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0]))[1]
    assert level == pytest.approx(0.0), "what is left over is not counted around its own mean"
    noise = np.random.default_rng(0).normal(size=(2, 400))
    assert abs(frontier_fit(noise[0], noise[1])[1]) < 0.05
    with pytest.raises(ValueError, match="needs 3 evaluations, got 2"):
        frontier_fit(gains[:2], lost[:2])
