import numpy as np
import pytest

from percent_ray.comparison import verdict


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
