import numpy as np
import pytest
import torch

from percent_ray.config import Monitor, Objective, Perceptual, Recipe, Sampling, Scorer
from percent_ray.objective import entropy, shaping
from percent_ray.shape import Group, ShapeState, shape
from percent_ray.types import Perception, Prompt, Span, Trajectory

K = 4
STD = np.array([0.7, 0.5, 0.3], np.float32)
NOW = Span("sample", "test", 0, 1)


def recipe(**perceptual) -> Recipe:
    return Recipe(
        scorers={"pickscore": Scorer(weight=2.0), "clip": Scorer(weight=0.5, required=False)},
        sampling=Sampling(group_size=K),
        perceptual=Perceptual(**perceptual),
        objective=Objective(advantage_std="group"),
        monitor=Monitor(spaces=("clip",)),
    )


def group(number: int, **changes) -> Group:
    draws = np.random.default_rng(number)

    def noise(*size: int) -> np.ndarray:
        return draws.standard_normal(size).astype(np.float32)

    fields = {
        "group_id": number,
        "rewards": {"pickscore": noise(K), "clip": noise(K)},
        "log_p_perc": {"pickscore": noise(K, 2)},
        "log_p_policy": noise(K, 2),
        "features": {"pickscore": noise(K, 8), "clip": noise(K, 8)},
        "variance": {"latent": 1.0, "pixel": 0.1},
        "thumbnails": None,
        "failures": (),
        "dropped": False,
        "span": NOW,
    }
    trajectory = Trajectory(
        number, Prompt("p"), 3, range(1, 4), STD, (1, 3), f"payload {number}", "condition", NOW
    )
    return trajectory, Perception(**fields | changes)


def advantages(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-4)


def test_without_a_method_the_reward_is_the_weighted_sum():
    batch, state, metrics = shape(recipe(), 4, 4, [group(0), group(1)], ShapeState())
    assert state == ShapeState()
    for row, (_, seen) in zip(batch.rows, [group(0), group(1)], strict=True):
        reward = 2.0 * seen.rewards["pickscore"] + 0.5 * seen.rewards["clip"]
        np.testing.assert_allclose(row.advantages, advantages(reward), rtol=1e-5)
    assert metrics["staleness/max"] == 1


@pytest.mark.parametrize("method", ["pec", "pcvae"])
def test_the_term_is_that_of_the_papers_section_3(method):
    chosen = recipe(method=method, strength=0.3, omega="variance")
    batch, state, _ = shape(chosen, 0, 3, [group(0)], ShapeState())
    _, seen = group(0)
    variance = STD[[0, 2]] ** 2
    omega = variance / variance.mean()
    inside = seen.log_p_perc["pickscore"]
    if method == "pcvae":
        inside = inside - seen.log_p_policy
    reward = 2.0 * seen.rewards["pickscore"] + 0.5 * seen.rewards["clip"]
    shaped = reward - 0.3 * (omega * inside).mean(1)
    np.testing.assert_allclose(batch.rows[0].advantages, advantages(shaped), rtol=1e-4)
    assert state.strength == 0.3


def test_relative_strength_and_bandwidth_are_measured_once_and_kept():
    chosen = recipe(method="pec", entropy="marginal", strength=0.5, strength_mode="relative")
    groups = [group(0), group(1)]
    _, first, _ = shape(chosen, 0, 3, groups, ShapeState())
    features = torch.stack([torch.tensor(s.features["pickscore"]) for _, s in groups])
    unit = entropy.scale_features(features, "unit")
    assert first.bandwidth == {"pickscore": pytest.approx(entropy.median_bandwidth(unit))}
    terms = torch.stack([entropy.marginal_terms(u, first.bandwidth["pickscore"]) for u in unit])
    rewards = torch.stack(
        [torch.tensor(2.0 * s.rewards["pickscore"] + 0.5 * s.rewards["clip"]) for _, s in groups]
    )
    assert first.strength == pytest.approx(shaping.relative_lambda(rewards, terms, 0.5))
    _, second, _ = shape(chosen, 1, 4, [group(2), group(3)], first)
    assert second == first


def test_dropped_and_flat_groups_are_left_out_and_counted():
    flat = {"rewards": {"pickscore": np.ones(K, np.float32)}}
    groups = [group(0), group(1, dropped=True, rewards={}, failures=("x",)), group(2, **flat)]
    batch, _, metrics = shape(recipe(), 0, 3, groups, ShapeState())
    assert [row.group_id for row in batch.rows] == [0]
    assert (metrics["groups/dropped"], metrics["groups/zero_std"]) == (1, 1)


def test_an_optional_reward_that_failed_leaves_the_others_to_decide():
    seen = group(0)[1]
    only = {"rewards": {"pickscore": seen.rewards["pickscore"]}}
    batch, _, metrics = shape(recipe(), 0, 3, [group(0, **only)], ShapeState())
    expected = advantages(2.0 * seen.rewards["pickscore"])
    np.testing.assert_allclose(batch.rows[0].advantages, expected, rtol=1e-5)
    assert "reward/clip_mean" not in metrics
