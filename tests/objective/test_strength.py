import math

import pytest
import torch

from percent_ray.objective.strength import LARGEST_STEP, REACH, ascend, calibrated, held


def test_a_flat_reward_or_term_is_refused():
    flat, varied = torch.full((2, 3), 0.1), torch.tensor([[0.0, 1.0, 2.0]] * 2)
    with pytest.raises(ValueError, match="the rewards of 2 groups of 3 have std 0"):
        calibrated({}, flat, varied, 0.5, name="term")
    with pytest.raises(ValueError, match=r"the terms \(dino\) of 2 groups of 3 have std 0"):
        calibrated({}, varied, flat, 0.5, name="dino")


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
