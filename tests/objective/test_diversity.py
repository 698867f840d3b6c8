import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percent_ray.objective.diversity import (
    cosine_distance,
    feature_variance,
    marginal_terms,
    median_bandwidth,
    variance_per_dimension,
    vendi,
)
from percent_ray.objective.entropy import scale_features

few = settings(max_examples=20, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_vendi(features: torch.Tensor) -> float:
    """exp of the entropy of the N x N cosine kernel's eigenvalues."""
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(x @ x.T / len(x))
    eigenvalues = eigenvalues[eigenvalues > 1e-14]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


@few
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(1, 12),
    width=st.integers(1, 12),
    repeats=st.integers(1, 3),
)
def test_vendi_equals_the_reference_formula(seed, count, width, repeats):
    features = 5 * normal(seed, count, width).repeat(repeats, 1)
    assert vendi(features) == pytest.approx(reference_vendi(features), abs=1e-6)


def test_vendi_counts_different_images():
    assert vendi(torch.eye(6)) == pytest.approx(6, abs=1e-9)
    assert vendi(torch.eye(6).repeat(4, 1)) == pytest.approx(6, abs=1e-9)
    assert vendi(normal(0, 1, 8).repeat(30, 1)) == pytest.approx(1, abs=1e-6)


def test_vendi_does_not_see_the_length_of_features():
    features = normal(0, 7, 5)
    lengths = torch.rand(7, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert vendi(lengths * features) == pytest.approx(vendi(features), abs=1e-5)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_vendi_refuses_broken_features(bad):
    features = normal(0, 4, 3)
    features[2] = bad
    with pytest.raises(ValueError, match="norms of 4 feature vectors"):
        vendi(features)


def test_feature_variance_is_the_trace_of_the_covariance():
    features = normal(0, 9, 4)
    trace = np.trace(np.cov(features.double().numpy().T, ddof=1))
    assert feature_variance(features) == pytest.approx(trace)
    assert variance_per_dimension(features) == pytest.approx(trace / 4)
    assert variance_per_dimension(features.view(9, 2, 2)) == pytest.approx(trace / 4)
    with pytest.raises(ValueError, match="2 images or more, got 1"):
        feature_variance(features[:1])


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


def test_the_cosine_distance_is_the_mean_over_pairs():
    features = normal(3, 5, 7) + 1.0
    pairs = [(i, j) for i in range(5) for j in range(i)]
    cosine = torch.nn.functional.cosine_similarity
    expected = np.mean([1 - cosine(features[i], features[j], dim=0).item() for i, j in pairs])
    assert cosine_distance(features) == pytest.approx(expected, rel=1e-5)
    assert cosine_distance(3 * features[:1].expand(4, -1)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="2 images or more, got 1"):
        cosine_distance(features[:1])
    with pytest.raises(ValueError, match="norms of 2 feature vectors run from 0"):
        cosine_distance(torch.zeros(2, 3))
