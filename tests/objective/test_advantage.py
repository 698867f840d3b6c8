import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percent_ray.objective.advantage import (
    advantage_probability_range,
    advantages,
    normalized,
    zero_std_groups,
)

few = settings(max_examples=15, deadline=None, derandomize=True)


def rewards(seed: int, groups: int = 5, images: int = 8) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return 0.8 + 0.05 * torch.randn(groups, images, generator=source)


@few
@given(seed=st.integers(0, 2**20), groups=st.integers(1, 6), images=st.integers(2, 9))
def test_advantages_equal_numpy(seed, groups, images):
    values = rewards(seed, groups, images)
    array = values.numpy().astype(np.float64)
    centred = array - array.mean(1, keepdims=True)
    for std, scale in (("group", array.std(1, keepdims=True)), ("global", array.std())):
        expected = np.clip(centred / (scale + 1e-4), -5, 5)
        np.testing.assert_allclose(advantages(values, std=std), expected, rtol=1e-5, atol=1e-6)


def test_an_outlier_is_clamped():
    values = torch.zeros(1, 100)
    values[0, 0] = 1
    assert advantages(values, std="group").max() == 5
    assert advantages(values, std="group", clip=20.0).max() > 9


def test_global_std_weighs_groups_by_their_spread():
    values = torch.tensor([[0.0, 1.0], [0.0, 0.1]])
    group, whole = advantages(values, std="group"), advantages(values, std="global")
    assert group[0, 1] == pytest.approx(group[1, 1].item(), rel=2e-2)
    assert whole[0, 1] == pytest.approx(10 * whole[1, 1].item(), rel=1e-5)


def test_zero_std_groups_have_no_advantage():
    values = rewards(0, 3, 7)
    values[0, 0] = 2
    values[1] = 0.1
    assert zero_std_groups(values).tolist() == [False, True, False]
    for std in ("group", "global"):
        assert torch.equal(advantages(values, std=std)[1], torch.zeros(7))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(bad):
    values = rewards(0)
    values[3, 2] = bad
    with pytest.raises(ValueError, match=r"1 of 5 groups are not finite \(rows \[3\]\)"):
        advantages(values, std="global")
    with pytest.raises((ValueError, TypeError), match="batch"):
        advantages(rewards(0), std="batch")


def test_advantage_probabilities():
    top, bottom = advantage_probability_range(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    e2 = np.exp(2)
    np.testing.assert_allclose(top, [0.5, e2 / (1 + e2)], rtol=1e-6)
    np.testing.assert_allclose(bottom, [0.5, 1 / (1 + e2)], rtol=1e-6)


@pytest.mark.parametrize("size", [3, 7, 24, 30])
@pytest.mark.parametrize("level", [0.1, -3.3, 26.7])
def test_a_score_that_is_the_same_for_all_is_normalized_to_exactly_0(size, level):
    """In float32 a mean of equal numbers may be another number."""
    assert torch.equal(normalized(torch.full((size,), level)), torch.zeros(size))


def test_a_normalized_score_has_mean_0_and_std_1():
    scores = torch.tensor([0.81, 0.82, 0.80, 0.85])
    found = normalized(scores)
    assert found.dtype == torch.float32
    expected = (scores - scores.mean()) / scores.std(correction=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
