import numpy as np
import pytest
import torch

from percent_ray.recipe.tree import Monitor, Objective, Recipe, Sampling, Scorer
from percent_ray.shape import Group, shape
from percent_ray.types import Perception, Prompt, Span, Trajectory

K = 4
STD = np.array([0.7, 0.5, 0.3], np.float32)
ENTROPY = (0.5 * np.log(2 * np.pi * np.e) + np.log(STD)).astype(np.float32)
NOW = Span("sample", "test", 0, 1)


def recipe(kl: float = 0.0, **method) -> Recipe:
    return Recipe(
        scorers={"pickscore": Scorer(weight=2.0), "clip": Scorer(weight=0.5, required=False)},
        sampling=Sampling(group_size=K),
        method={"name": "flow_grpo"} | method,
        objective=Objective(advantage_std="group", kl=kl),
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
        "log_p_policy": noise(K, 3),
        "features": {"pickscore": noise(K, 8), "clip": noise(K, 8)},
        "variance": {"latent": 1.0, "pixel": 0.1},
        "thumbnails": None,
        "failures": (),
        "dropped": False,
        "span": NOW,
    }
    trajectory = Trajectory(
        number,
        Prompt("p"),
        3,
        range(1, 4),
        STD,
        ENTROPY,
        (1, 3),
        f"payload {number}",
        "condition",
        NOW,
    )
    return trajectory, Perception(**fields | changes)


def advantages(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-4)


def test_the_batch_is_what_the_method_makes_of_the_groups():
    batch, state, metrics = shape(recipe(), 4, [group(0), group(1)], {})
    assert state == {}
    for row, (_, seen) in zip(batch.rows, [group(0), group(1)], strict=True):
        reward = 2.0 * seen.rewards["pickscore"] + 0.5 * seen.rewards["clip"]
        for i in range(3):
            found = row.weights.advantage[:, i]
            np.testing.assert_allclose(found, advantages(reward), rtol=1e-5)
        assert row.weights.kl_reference is None
    assert metrics["staleness/max"] == 1


@pytest.mark.parametrize("method", ["pec", "pcvae"])
def test_a_method_is_given_the_log_probs_of_its_scored_steps(method):
    chosen = recipe(name=method, strength=0.3, omega="variance")
    batch, _, metrics = shape(chosen, 3, [group(0)], {})
    _, seen = group(0)
    variance = STD[[0, 2]] ** 2
    omega = variance / variance.mean()
    inside = seen.log_p_perc["pickscore"]
    if method == "pcvae":
        inside = inside - seen.log_p_policy[:, [0, 2]]
    reward = 2.0 * seen.rewards["pickscore"] + 0.5 * seen.rewards["clip"]
    shaped = reward - 0.3 * (omega * inside).mean(1)
    np.testing.assert_allclose(batch.rows[0].weights.advantage[:, 1], advantages(shaped), rtol=1e-4)
    assert metrics["shaping/strength"] == 0.3


def test_state_goes_from_step_to_step_and_probes_reach_the_method():
    chosen = recipe(name="marginal_pec", image_spaces=["clip"], strength="auto")
    with pytest.raises(ValueError, match="needs probes"):
        shape(chosen, 3, [group(0)], {})
    _, first, _ = shape(chosen, 3, [group(0)], {}, probe=[group(7), group(8)])
    _, second, _ = shape(chosen, 4, [group(1)], first)
    assert second["clip/held/log_strength"] == first["clip/held/log_strength"]
    _, third, _ = shape(chosen, 5, [group(2)], second, probe=[group(9), group(8)])
    assert third["clip/held/log_strength"] != first["clip/held/log_strength"]
    assert third["bandwidth/clip"] == first["bandwidth/clip"]


def test_the_kl_of_the_objective_goes_to_every_transition():
    batch, _, _ = shape(recipe(kl=0.1), 3, [group(0)], {})
    held = batch.rows[0].weights.kl_reference
    assert held is not None
    assert torch.equal(held, torch.full((K, 3), 0.1))


def test_dropped_and_flat_groups_are_left_out_and_counted():
    flat = {"rewards": {"pickscore": np.ones(K, np.float32)}}
    groups = [group(0), group(1, dropped=True, rewards={}, failures=("x",)), group(2, **flat)]
    batch, _, metrics = shape(recipe(), 3, groups, {})
    assert [row.group_id for row in batch.rows] == [0]
    assert (metrics["groups/dropped"], metrics["groups/zero_std"]) == (1, 1)


def test_an_optional_reward_that_failed_leaves_the_others_to_decide():
    seen = group(0)[1]
    only = {"rewards": {"pickscore": seen.rewards["pickscore"]}}
    batch, _, metrics = shape(recipe(), 3, [group(0, **only)], {})
    expected = advantages(2.0 * seen.rewards["pickscore"])
    np.testing.assert_allclose(batch.rows[0].weights.advantage[:, 0], expected, rtol=1e-5)
    assert "reward/clip_mean" not in metrics


def test_the_share_of_groups_whose_rewards_differ_is_of_the_rewards_themselves():
    """Marginal PEC tells images of equal reward apart; the reward does not."""
    equal = {"pickscore": np.ones(K, np.float32), "clip": np.ones(K, np.float32)}
    groups = [group(0), group(1), group(2, rewards=equal), group(3)]
    ours = recipe(name="marginal_pec", strength=0.3)
    for made in (recipe(), ours):
        _, _, metrics = shape(made, 5, groups, {})
        assert metrics["groups/differ"] == 0.75
    assert metrics["groups/taught"] == 4
