import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percent_ray.flow.schedule import (
    check_sigmas,
    scored_steps,
    sde_window,
    trained_steps,
)
from percent_ray.flow.sde import Transition, transition

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flow_sde.json").read_text())
few = settings(max_examples=20, deadline=None, derandomize=True)


def flux_sigmas(steps: int, exponent: float) -> torch.Tensor:
    t = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    shifted = math.exp(exponent) / (math.exp(exponent) + 1 / t - 1)
    return torch.cat([shifted, torch.zeros(1)]).float()


def sd3_sigmas(steps: int, shift: float) -> torch.Tensor:
    """diffusers' rule: the smallest sigma is shifted already when it is shifted again."""

    def shifted(t: torch.Tensor) -> torch.Tensor:
        return shift * t / (1 + (shift - 1) * t)

    smallest = shifted(torch.tensor(0.001, dtype=torch.float64)).item()
    t = torch.linspace(1, smallest, steps, dtype=torch.float64)
    return torch.cat([shifted(t), torch.zeros(1)]).float()


def steps_of(sigmas: torch.Tensor, noise_level: float) -> Transition:
    """Every step of a schedule, a row each."""
    x = torch.zeros(len(sigmas) - 1, 3)
    return transition(
        x,
        x,
        sigmas[:-1],
        sigmas[1:],
        sigma_second=sigmas[1],
        noise_level=noise_level,
        kind="flow_sde",
    )


def test_flux_schedule_has_the_papers_entropy():
    sigmas = flux_sigmas(6, 0.63)
    listed = torch.tensor([1, 0.9037, 0.7897, 0.6525, 0.4842, 0.2730, 0])
    torch.testing.assert_close(sigmas, listed, rtol=0, atol=5e-5)
    steps = steps_of(sigmas, 0.9)
    torch.testing.assert_close(
        steps.std,
        torch.tensor([0.900, 0.931, 0.646, 0.506, 0.401, 0.288]),
        rtol=0,
        atol=5e-4,
    )
    assert steps.entropy().mean().item() == pytest.approx(0.843, abs=5e-4)


def test_sd3_schedule_has_the_listed_stds():
    sigmas = sd3_sigmas(10, 3.0)
    golden = next(case for case in GOLDEN if case["name"] == "sd3.5-m T=10")
    torch.testing.assert_close(sigmas, torch.tensor(golden["sigmas"]), rtol=0, atol=2e-6)
    std = [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225, 0.006]
    torch.testing.assert_close(steps_of(sigmas, 0.7).std, torch.tensor(std), rtol=0, atol=5e-4)


@pytest.mark.parametrize(("steps", "trained"), [(10, 9), (6, 5), (20, 19)])
def test_trained_steps_drop_the_last(steps, trained):
    assert trained_steps(steps, fraction=0.99) == range(trained)


def test_trained_steps_say_what_to_set():
    assert trained_steps(4, fraction=1.0) == range(4)
    with pytest.raises(ValueError, match=r"fraction of 0\.1 of 6 steps is 0 steps; set"):
        trained_steps(6, fraction=0.1)
    with pytest.raises(ValueError, match=r"fraction of 1\.5 of 6 steps is 9 steps; set"):
        trained_steps(6, fraction=1.5)


@few
@given(
    low=st.integers(0, 4),
    size=st.integers(1, 4),
    room=st.integers(0, 4),
    seed=st.integers(0, 2**40),
    iteration=st.integers(0, 10**6),
)
def test_window_stays_inside_and_is_a_function_of_seed_and_iteration(
    low, size, room, seed, iteration
):
    high = low + size + room
    windows = [
        sde_window(12, size=size, low=low, high=high, seed=seed, iteration=iteration)
        for _ in range(2)
    ]
    assert windows[0] == windows[1]
    assert len(windows[0]) == size
    assert low <= windows[0].start
    assert windows[0].stop <= high


def test_windows_take_every_place():
    starts = {sde_window(10, size=3, low=0, high=5, seed=7, iteration=i).start for i in range(40)}
    assert starts == {0, 1, 2}
    with pytest.raises(ValueError, match=r"window of 4 steps does not fit in \[0, 3\) of 10"):
        sde_window(10, size=4, low=0, high=3, seed=0, iteration=0)


@few
@given(count=st.integers(1, 5), seed=st.integers(0, 2**40), group_id=st.integers(-5, 10**9))
def test_scored_steps_are_a_subset_fixed_by_the_group(count, seed, group_id):
    steps = range(2, 7)
    chosen = scored_steps(steps, count, seed=seed, group_id=group_id)
    assert chosen == scored_steps(steps, count, seed=seed, group_id=group_id)
    assert len(set(chosen)) == count
    assert set(chosen) <= set(steps)
    assert list(chosen) == sorted(chosen)


def test_scored_steps_are_chosen_evenly():
    chosen = [scored_steps(range(1, 5), 2, seed=0, group_id=i) for i in range(600)]
    share = torch.tensor([sum(i in steps for steps in chosen) for i in range(1, 5)]) / 600
    torch.testing.assert_close(share, torch.full((4,), 0.5), rtol=0, atol=0.08)
    assert scored_steps(range(1, 5), None, seed=0, group_id=0) == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="cannot score 6 of 4 trained steps"):
        scored_steps(range(1, 5), 6, seed=0, group_id=0)


@pytest.mark.parametrize(
    "values",
    [[1.0], [1.0, 0.5, 0.1], [1.0, 0.5, 0.5, 0.0], [1.2, 0.5, 0.0], [1.0, float("nan"), 0]],
)
def test_a_schedule_that_does_not_fall_to_zero_is_refused(values):
    with pytest.raises(ValueError, match="sigmas"):
        check_sigmas(torch.tensor(values))
