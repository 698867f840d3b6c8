import math

import pytest
import torch

from percent_ray.objective.strength import (
    CALIBRATION_STEPS,
    LARGEST_STEP,
    REACH,
    State,
    ascend,
    calibrated,
    held,
)


def test_a_flat_reward_or_term_is_refused():
    flat, varied = torch.full((2, 3), 0.1), torch.tensor([[0.0, 1.0, 2.0]] * 2)
    for rewards, term, said in (
        (flat, varied, "the rewards of 2 groups of 3 have std 0"),
        (varied, flat, r"the terms \(dino\) of 2 groups of 3 have std 0"),
    ):
        state: State = {}
        for _ in range(CALIBRATION_STEPS - 1):
            weight, state = calibrated(state, rewards, term, 0.5, name="dino")
            assert weight == 0, "a first step may have none by chance"
        with pytest.raises(ValueError, match=said):
            calibrated(state, rewards, term, 0.5, name="dino")


def test_a_strength_cannot_be_held_from_0_on():
    with pytest.raises(ValueError, match="auto begins with the first step's rewards, which do not"):
        held({}, 1.0, 0.0, 0.9, name="dino")


def test_a_step_of_the_log_strength_is_damped_and_bounded():
    assert ascend(0.0, 0.2, 0.2, start=0.0) == pytest.approx(0.1)
    assert ascend(0.0, 0.2, 0.3, start=0.0) < 0, "on its way back already"
    assert ascend(0.0, 9.0, 0.0, start=0.0) == LARGEST_STEP
    assert ascend(REACH, 9.0, 9.0, start=0.0) == REACH


def test_a_held_entropy_settles_at_its_target_without_over_swinging():
    """A slow response, as training has it: the entropy follows the log strength with a lag."""
    state, entropy, found = {}, 0.0, []
    for _ in range(60):
        strength, state = held(state, entropy, 0.1, 0.8, name="x")
        wanted = -1.0 + 0.5 * math.log(strength / 0.1)
        entropy += 0.3 * (wanted - entropy)
        found.append(entropy)
    target = math.log(0.8)
    assert min(found) < target - 0.1, "it falls first"
    assert found[-1] == pytest.approx(target, abs=0.02)
    assert max(found[10:]) < target + 0.15
