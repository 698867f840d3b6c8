import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percent_ray.flow.sde import transition
from percent_ray.objective.grpo import Weights, grpo_loss, transition_loss

few = settings(max_examples=15, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@few
@given(seed=st.integers(0, 2**20), low=st.floats(0, 0.2), high=st.floats(0, 0.3))
def test_loss_equals_numpy(seed, low, high):
    new, old, advantage = (
        normal(seed, 40),
        normal(seed, 40) + 0.2 * normal(seed + 1, 40),
        normal(seed + 2, 40),
    )
    loss, metrics = grpo_loss(new, old, advantage, clip_low=low, clip_high=high)
    ratio, a = np.exp((new - old).double().numpy()), advantage.double().numpy()
    expected = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - low, 1 + high))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    assert metrics.ratio_sum.item() == pytest.approx(ratio.sum(), rel=1e-5)
    assert metrics.ratio_deviation_max.item() == pytest.approx(abs(ratio - 1).max(), rel=1e-3)
    assert metrics.clip_low_sum == ((ratio < 1 - low) & (a < 0)).sum()
    assert metrics.clip_high_sum == ((ratio > 1 + high) & (a > 0)).sum()
    assert metrics.approx_kl_sum.item() == pytest.approx(
        0.5 * np.square((new - old).double().numpy()).sum(), rel=1e-4
    )


def test_gradient_at_ratio_one_is_the_policy_gradient():
    velocity, latents = normal(0, 4, 6).requires_grad_(), normal(1, 4, 6)
    policy = transition(
        velocity, latents, 0.8, 0.7, sigma_second=0.9, noise_level=0.7, kind="flow_sde"
    )
    log_prob = policy.log_prob(policy.draw(normal(2, 4, 6)))
    advantage = torch.tensor([1.5, -0.5, 0.3, -2.0])
    loss, metrics = grpo_loss(log_prob, log_prob.detach(), advantage, clip_low=1e-4, clip_high=1e-4)
    (gradient,) = torch.autograd.grad(loss.sum(), velocity, retain_graph=True)
    (expected,) = torch.autograd.grad((-advantage * log_prob).sum(), velocity)
    assert expected.abs().min() > 0
    torch.testing.assert_close(gradient, expected)
    assert metrics.ratio_deviation_max == 0
    assert metrics.clip_low_sum + metrics.clip_high_sum == 0


@pytest.mark.parametrize(
    ("change", "advantage", "moves"),
    [
        (0.2, 1.0, False),
        (0.2, -1.0, True),
        (-0.2, 1.0, True),
        (-0.2, -1.0, False),
        (0.05, 1.0, True),
    ],
)
def test_a_clipped_transition_has_no_gradient(change, advantage, moves):
    log_prob = torch.tensor([change], requires_grad=True)
    loss, metrics = grpo_loss(
        log_prob, torch.zeros(1), torch.tensor([advantage]), clip_low=0.1, clip_high=0.1
    )
    loss.sum().backward()
    assert log_prob.grad is not None
    assert (log_prob.grad != 0).item() == moves
    assert metrics.clip_low_sum + metrics.clip_high_sum == (not moves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_ratio_beyond_exp_leaves_no_nan_in_the_gradient(dtype):
    """Clipped, and without any advantage; what is inside of the range has the plain gradient."""
    change = torch.tensor([1000.0, 100.0, 1000.0, 79.0, 0.05, -0.3, -1000.0, 3.0], dtype=dtype)
    advantage = torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0, 1.0, -1.0, -1.0], dtype=dtype)
    log_prob = change.clone().requires_grad_()
    loss, metrics = grpo_loss(
        log_prob, torch.zeros_like(change), advantage, clip_low=0.1, clip_high=0.1
    )
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert loss.isfinite().all()
    plain = change.clone().requires_grad_()
    ratio = plain.exp()
    surrogate = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.9, 1.1))
    (expected,) = torch.autograd.grad(surrogate.sum(), plain)
    assert expected[:3].isnan().all(), "the plain formula"
    assert gradient[:3].eq(0).all()
    assert torch.equal(gradient[3:], expected[3:])
    assert torch.equal(loss[3:], surrogate[3:])
    assert metrics.clip_high_sum == 3
    assert metrics.ratio_deviation_max.isfinite()


def test_a_bad_transition_that_has_left_its_data_is_not_hidden():
    log_prob = torch.tensor([100.0], requires_grad=True)
    loss, _ = grpo_loss(log_prob, torch.zeros(1), -torch.ones(1), clip_low=0.1, clip_high=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert gradient.isinf().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transition_without_a_score_has_no_gradient_at_any_ratio(dtype):
    velocity, latents = normal(0, 2, 6).to(dtype).requires_grad_(), normal(1, 2, 6)
    policy = transition(
        velocity, latents, 0.8, 0.7, sigma_second=0.9, noise_level=0.7, kind="flow_sde"
    )
    old = policy.log_prob(latents).detach() - torch.tensor([200.0, 0.1])
    weights = Weights(torch.tensor([1.0, 0.0]), score=torch.tensor([0.0, 2.0]))
    loss, _, _ = transition_loss(policy, latents, old, weights, clip_low=0.1, clip_high=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    assert gradient[0].eq(0).all()
    assert gradient[1].isfinite().all()
    assert gradient[1].ne(0).any()


def test_clip_higher_lets_good_transitions_go_further():
    log_prob = torch.tensor([0.2, -0.2], requires_grad=True)
    loss, metrics = grpo_loss(
        log_prob, torch.zeros(2), torch.tensor([1.0, -1.0]), clip_low=0.1, clip_high=0.3
    )
    loss.sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0] != 0
    assert log_prob.grad[1] == 0
    assert (metrics.clip_low_sum, metrics.clip_high_sum) == (1, 0)


@few
@given(cuts=st.lists(st.integers(1, 29), min_size=1, max_size=4, unique=True).map(sorted))
def test_loss_and_metrics_do_not_depend_on_micro_batches(cuts):
    """Invariant 6."""
    new, old, advantage = (normal(i, 30) for i in range(3))
    options = {"clip_low": 0.2, "clip_high": 0.3}
    loss, whole = grpo_loss(new, old, advantage, **options)
    parts = [
        grpo_loss(*pieces, **options)
        for pieces in zip(
            *(torch.tensor_split(t, cuts) for t in (new, old, advantage)), strict=True
        )
    ]
    assert torch.equal(torch.cat([part for part, _ in parts]), loss)
    for field in dataclasses.fields(whole):
        values = torch.stack([getattr(metrics, field.name) for _, metrics in parts])
        merged = values.amax() if field.name.endswith("_max") else values.sum()
        torch.testing.assert_close(merged, getattr(whole, field.name), rtol=1e-12, atol=0)


def test_metrics_hold_no_graph():
    log_prob = torch.zeros(3, requires_grad=True)
    _, metrics = grpo_loss(log_prob, torch.zeros(3), torch.ones(3), clip_low=0.1, clip_high=0.1)
    values = [getattr(metrics, field.name) for field in dataclasses.fields(metrics)]
    assert not any(value.requires_grad for value in values)


def test_a_negative_clip_range_is_refused():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"clip ranges are -0\.1 and 0\.1"):
        grpo_loss(x, x, x, clip_low=-0.1, clip_high=0.1)
