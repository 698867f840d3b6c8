import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from percent_ray.flow.sde import transition
from percent_ray.objective.entropy import (
    fit_law,
    perceptual_entropy,
    perceptual_log_prob,
    policy_entropy,
    scale_features,
)

few = settings(max_examples=10, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_feature_scales():
    features = 7 * normal(0, 3, 2, 16)
    rms, unit = scale_features(features, "rms"), scale_features(features, "unit")
    torch.testing.assert_close(rms.square().mean(-1), torch.ones(3, 2))
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3, 2))
    torch.testing.assert_close(rms, 4 * unit)
    assert torch.equal(scale_features(features, "none"), features)
    assert scale_features(features.bfloat16(), "rms").dtype == torch.float32
    with pytest.raises((ValueError, TypeError), match="norm"):
        scale_features(features, "norm")


@few
@given(seed=st.integers(0, 2**20))
def test_perceptual_log_prob_is_the_mean_normal_log_prob(seed):
    sample, mean = normal(seed, 4, 3, 8), normal(seed + 1, 4, 3, 8)
    std = torch.tensor([0.9, 0.5, 0.3])
    expected = Normal(mean, std.view(3, 1)).log_prob(sample).mean(-1)
    torch.testing.assert_close(perceptual_log_prob(sample, mean, std), expected)


def test_perceptual_entropy_of_identity_features_is_the_policys():
    """With an encoder that changes nothing, eqs. 12-13 are the policy's own entropy."""
    x = normal(0, 2, 100_000)
    policy = transition(
        normal(1, 2, 100_000), x, 0.8, 0.6, sigma_second=0.9, noise_level=0.7, kind="flow_sde"
    )
    drawn = policy.draw(normal(2, 2, 100_000))
    log_p = perceptual_log_prob(drawn.unsqueeze(1), policy.mean.unsqueeze(1), policy.std[:1])
    torch.testing.assert_close(
        perceptual_entropy(log_p), policy.entropy().mean(), rtol=0, atol=8e-3
    )
    torch.testing.assert_close(
        perceptual_entropy(log_p),
        policy_entropy(policy.log_prob(drawn).unsqueeze(1), policy.std[:1], kind="flow_sde"),
    )


@pytest.mark.parametrize("kind", ["flow_sde", "cps"])
def test_policy_entropy_is_measured_and_equals_the_closed_form(kind):
    """Two steps of other stds; `cps` log-probs lack what the std puts back."""
    sigmas = torch.tensor([[0.8, 0.6], [0.6, 0.3]])
    x = normal(0, 4, 20_000)
    steps = [
        transition(x, x, now, then, sigma_second=0.9, noise_level=0.7, kind=kind)
        for now, then in sigmas
    ]
    log_prob = [s.log_prob(s.draw(normal(i, 4, 20_000))) for i, s in enumerate(steps, start=1)]
    std = torch.stack([s.std[0] for s in steps])
    measured = policy_entropy(torch.stack(log_prob, 1), std, kind=kind)
    closed = torch.stack([s.entropy() for s in steps]).mean()
    standard_error = math.sqrt(0.5 / (2 * 4 * 20_000))
    assert abs(measured - closed) < 3 * standard_error
    louder = policy_entropy(torch.stack(log_prob, 1) - 1.0, std, kind=kind)
    assert louder > measured + 0.5, "it looks at the log-probs"


def test_features_that_do_not_move_leave_the_constant():
    features, std = normal(0, 4, 2, 8), torch.tensor([0.9, 0.3])
    entropy = perceptual_entropy(perceptual_log_prob(features, features, std))
    expected = 0.5 * math.log(2 * math.pi) + std.log().mean().item()
    assert entropy.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="std 0"):
        perceptual_log_prob(features, features, torch.tensor([0.9, 0.0]))


def test_law_recovers_the_published_constants():
    entropies = torch.linspace(-0.70, -0.76, 9)
    rewards = -3.13 * entropies.exp() + 2.35
    assert rewards[0].item() == pytest.approx(0.79, abs=0.01)
    assert rewards[-1].item() == pytest.approx(0.89, abs=0.01)
    a, b, r2 = fit_law(entropies, rewards)
    assert (a, b, r2) == pytest.approx((3.13, 2.35, 1.0), abs=1e-3)


def test_law_equals_numpys_least_squares():
    entropies, rewards = normal(0, 12), normal(1, 12)
    a, b, r2 = fit_law(entropies, rewards)
    x = np.exp(entropies.double().numpy())
    slope, offset = np.polyfit(x, rewards.numpy(), 1)
    assert (a, b) == pytest.approx((-slope, offset), rel=1e-5)
    assert r2 == pytest.approx(np.corrcoef(x, rewards.numpy())[0, 1] ** 2, rel=1e-5)
    with pytest.raises(ValueError, match="2 different entropies"):
        fit_law(torch.ones(3), rewards[:3])
