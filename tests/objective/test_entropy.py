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
    marginal_terms,
    median_bandwidth,
    perceptual_entropy,
    perceptual_log_prob,
    policy_entropy_estimate,
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
        perceptual_entropy(log_p), policy_entropy_estimate(policy.log_prob(drawn))
    )


def test_features_that_do_not_move_leave_the_constant():
    features, std = normal(0, 4, 2, 8), torch.tensor([0.9, 0.3])
    entropy = perceptual_entropy(perceptual_log_prob(features, features, std))
    expected = 0.5 * math.log(2 * math.pi) + std.log().mean().item()
    assert entropy.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="std 0"):
        perceptual_log_prob(features, features, torch.tensor([0.9, 0.0]))


def test_marginal_terms_equal_a_direct_transcription():
    features = scale_features(normal(0, 6, 5), "unit").double()
    h2, terms = 0.3, []
    for k in range(6):
        density = [
            math.exp(-(features[k] - features[j]).square().sum().item() / (2 * h2))
            for j in range(6)
            if j != k
        ]
        terms.append(-math.log(sum(density) / 5))
    np.testing.assert_allclose(marginal_terms(features.float(), h2), terms, rtol=1e-5)


def test_marginal_terms_reward_the_odd_one_out():
    features = scale_features(torch.cat([normal(0, 1, 8).expand(5, 8), normal(1, 1, 8)]), "unit")
    terms = marginal_terms(features, 0.05)
    assert terms.argmax() == 5
    assert torch.equal(marginal_terms(features[:5], 0.05), torch.zeros(5))
    far = marginal_terms(1000 * features, 0.05)
    assert far.isfinite().all()


def test_marginal_terms_refuse_what_has_no_density():
    with pytest.raises(ValueError, match="2 images a group, got 1"):
        marginal_terms(normal(0, 1, 4), 0.1)
    with pytest.raises(ValueError, match="bandwidth_sq is 0"):
        marginal_terms(normal(0, 3, 4), 0.0)


def test_median_bandwidth_is_half_the_median_squared_distance():
    groups = normal(0, 3, 5, 4).double().numpy()
    distances = [
        ((group[j] - group[k]) ** 2).sum() for group in groups for j in range(5) for k in range(j)
    ]
    expected = np.median(distances) / 2
    assert median_bandwidth(torch.tensor(groups)) == pytest.approx(expected)
    assert median_bandwidth(torch.tensor(2 * groups)) == pytest.approx(4 * expected)
    with pytest.raises(ValueError, match="equal to this encoder"):
        median_bandwidth(torch.ones(4, 3))
    with pytest.raises(ValueError, match="2 images a group, got 1"):
        median_bandwidth(torch.ones(1, 3))


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
