import pytest

from percent_ray.monitor import readout

NFT = [
    {"signal/gradient": s, "signal/noise": 1 - s, "groups/taught": 18.0, "groups/differ": 1.0}
    for s in (0.2, 0.3, 0.25, 0.35, 0.15)
]
GRPO = [
    {"signal/gradient": s, "signal/noise": 1 - s, "groups/taught": 6.0, "groups/differ": 1.0}
    for s in (0.02, -0.03, 0.01, -0.01, 0.015)
]


def test_the_share_is_of_the_sums_with_the_error_of_the_mean():
    found = readout.share(NFT)
    assert found is not None
    assert found.mean == pytest.approx(0.25)
    assert found.error == pytest.approx((0.025 / 4 / 5) ** 0.5)
    sizes = [
        {"signal/gradient": size / 4, "signal/noise": 3 * size / 4} for size in (1, 4, 2, 8, 3)
    ]
    even = readout.share(sizes)
    assert (even.mean, even.error) == (0.25, pytest.approx(0.0)), "a step's size is no error"
    loud = [*NFT, {"signal/gradient": 0.0, "signal/noise": 95.0}]
    assert readout.share(loud).mean == pytest.approx(1.25 / 100)


def test_too_few_steps_say_nothing():
    assert readout.share(NFT[:4]) is None
    assert readout.descent([{"signal/descent": -0.5}] * 4) is None
    assert readout.words([]) == []
    assert readout.words([{"reward/mean": 1.0}]) == []


def test_a_step_with_signal_says_how_many_groups_would_make_it_half():
    [line] = readout.words(NFT)
    assert line == (
        "signal: 25.0% ± 3.5% of a step's squared gradient over 5 steps, mostly noise; half of it "
        "would be with about 54 groups a step, there are 18"
    )
    most = [
        {**m, "signal/gradient": 0.8, "signal/noise": 0.2 + 0.01 * i} for i, m in enumerate(NFT)
    ]
    assert "mostly signal" in readout.words(most)[0]


def test_what_is_not_told_from_noise_says_what_to_set():
    [line] = readout.words(GRPO)
    assert line.startswith(
        "signal: not told from noise, under 2.0% of a step's squared gradient (0.1%"
    )
    assert "set data.groups_per_step higher" in line


def test_steps_that_overshoot_are_told_from_those_that_do_not():
    over = [{"signal/descent": v} for v in (-0.012, -0.009, -0.006, -0.014, -0.01)]
    [line] = readout.words(over)
    assert line.startswith("steps overshoot: on fresh images the last update leads uphill")
    assert "learner.lr lower" in line
    assert readout.words([{"signal/descent": v} for v in (-0.012, 0.009, -0.006, 0.004, 0.0)]) == []


def test_rounding_that_is_clipped_is_told():
    steps = [{"ratio/floor": 1e-5, "ratio/floor_outside": share} for share in (0.0, 0.05, 0.02)]
    [line] = readout.words(steps)
    assert line.startswith("rounding: in 2 of 3 steps it moved the ratio of up to 5.0% of what")
    assert readout.words(steps[:1]) == []


def test_groups_without_a_difference_are_told():
    [line] = readout.words([{"groups/differ": 0.25}] * 3)
    assert line.startswith("rewards differ in 25% of the groups only")
