import numpy as np
import pytest

from percent_ray.report.law import law


def test_the_fit_and_its_intervals_are_those_of_a_linear_regression():
    from scipy.stats import linregress, t

    rng = np.random.default_rng(0)
    h = np.linspace(0.3, 0.5, 9)
    r = 2.35 - 3.13 * np.exp(-h) + 0.05 * rng.standard_normal(9)
    fit = law(h, r)
    expected = linregress(np.exp(-h), r)
    wide = t.ppf(0.975, 7)
    assert fit.a == pytest.approx(-expected.slope)
    assert fit.b == pytest.approx(expected.intercept)
    assert fit.r2 == pytest.approx(expected.rvalue**2)
    for interval, centre, error in (
        (fit.a_interval, -expected.slope, expected.stderr),
        (fit.b_interval, expected.intercept, expected.intercept_stderr),
    ):
        assert interval == (
            pytest.approx(centre - wide * error),
            pytest.approx(centre + wide * error),
        )
    # At exp(-H) = 0 the band of the mean would be that of b: check it where it is least, too.
    assert fit.band.argmin() in (4, 5)
    assert fit.sure


def test_the_interval_of_a_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    h = np.linspace(0.3, 0.5, 6)
    line = 2.35 - 3.13 * np.exp(-h)
    fits = [law(h, line + 0.05 * rng.standard_normal(6)) for _ in range(400)]
    held = np.mean([fit.a_interval[0] < 3.13 < fit.a_interval[1] for fit in fits])
    assert 0.92 < held < 0.98


def test_a_run_that_obeys_the_published_law_has_its_numbers():
    """Plotted is minus `perceptual_entropy`, -0.70 to -0.76: it rises with the reward."""
    h = np.linspace(0.70, 0.76, 9)
    r = 2.35 - 3.13 * np.exp(-h)
    assert (r[0], r[-1]) == (pytest.approx(0.79, abs=0.01), pytest.approx(0.89, abs=0.01))
    fit = law(h, r)
    assert (fit.a, fit.b, fit.r2) == pytest.approx((3.13, 2.35, 1.0))


def test_noise_has_no_law():
    rng = np.random.default_rng(2)
    assert not law(rng.uniform(0.3, 0.5, 8), rng.uniform(0, 1, 8)).sure


def test_too_few_probes_have_none():
    nan = float("nan")
    assert law(np.array([0.3, 0.4]), np.array([1.0, 2.0])) is None
    assert law(np.array([0.3, 0.4, nan, 0.5]), np.array([1.0, 2.0, 1.0, nan])) is None
    assert law(np.full(5, 0.3), np.arange(5.0)) is None
