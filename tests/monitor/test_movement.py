import numpy as np
import pytest

from percent_ray.monitor.movement import Movement, movement

SOURCE = np.random.default_rng(0)
BEFORE = SOURCE.integers(100, 120, (3, 10, 3, 4, 4), dtype=np.uint8)


def test_one_change_of_all_pictures_is_shared_whatever_its_shape():
    found = movement(BEFORE, BEFORE + SOURCE.integers(1, 50, (3, 4, 4), dtype=np.uint8))
    assert (found.shared, found.of_prompt) == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_change_of_each_prompt_and_one_of_each_picture():
    """Means over n independent changes keep 1/n of their square."""
    by_prompt = SOURCE.choice([-20, 20], (3, 1, 3, 4, 4))
    found = movement(BEFORE, (BEFORE + by_prompt).astype(np.uint8))
    assert found.size == pytest.approx((20 / 255) ** 2)
    assert found.of_prompt == pytest.approx(1.0)
    assert found.shared == pytest.approx(1 / 3, abs=0.12)
    by_picture = SOURCE.choice([-20, 20], BEFORE.shape)
    found = movement(BEFORE, (BEFORE + by_picture).astype(np.uint8))
    assert found.of_prompt == pytest.approx(1 / 10, abs=0.03)
    assert found.shared == pytest.approx(1 / 30, abs=0.02)


def test_nothing_moved_and_other_shapes():
    assert movement(BEFORE, BEFORE) == Movement(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="do not compare"):
        movement(BEFORE, BEFORE[:2])
