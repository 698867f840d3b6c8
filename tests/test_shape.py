import numpy as np
import pytest
import torch

from percent_ray.recipe.tree import Monitor, Objective, Recipe, Sampling, Scorer
from percent_ray.shape import Group, _signals, describe, shape
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
        "failures": {},
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
    omega = (STD**2 / (STD**2).mean())[[0, 2]]
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
    groups = [
        group(0),
        group(1, dropped=True, rewards={}, failures={"clip": "x"}),
        group(2, **flat),
    ]
    batch, _, metrics = shape(recipe(), 3, groups, {})
    assert [row.group_id for row in batch.rows] == [0]
    assert (metrics["groups/dropped"], metrics["groups/zero_std"]) == (1, 1)
    assert metrics["groups/failed_rewards"] == 1, "of the dropped group, too"
    _, _, alone = shape(recipe(), 3, [groups[0], groups[2]], {})
    assert alone["reward/mean"] == metrics["reward/mean"]


def test_an_optional_reward_that_failed_leaves_the_others_to_decide():
    seen = group(0)[1]
    only = {"rewards": {"pickscore": seen.rewards["pickscore"]}}
    batch, _, metrics = shape(recipe(), 3, [group(0, **only)], {})
    expected = advantages(2.0 * seen.rewards["pickscore"])
    np.testing.assert_allclose(batch.rows[0].weights.advantage[:, 0], expected, rtol=1e-5)
    assert "reward/clip_mean" not in metrics


def test_a_group_that_lacks_an_optional_reward_has_the_level_of_the_others():
    """Else the std of all groups' rewards takes the step down for a spread, and the other groups'
    advantages shrink."""
    levelled = {"clip": np.full(K, 40.0, np.float32)}
    groups = [
        group(i, rewards={"pickscore": group(i)[1].rewards["pickscore"]} | (levelled if i else {}))
        for i in range(4)
    ]
    rewards = _signals(recipe(), groups, {}, []).rewards
    for row, (_, seen) in zip(rewards, groups, strict=True):
        np.testing.assert_allclose(row, 2.0 * seen.rewards["pickscore"] + 0.5 * 40.0, rtol=1e-6)
    whole = describe(recipe(), groups[1:])
    assert describe(recipe(), groups)["reward/mean"] == whole["reward/mean"]


def test_where_no_group_has_an_optional_reward_the_others_are_the_sum():
    seen = group(0)[1].rewards["pickscore"]
    told = describe(recipe(), [group(0, rewards={"pickscore": seen})])
    assert told["reward/mean"] == pytest.approx(2.0 * float(seen.mean()), rel=1e-6)


def test_probes_tell_only_what_all_their_prompts_have():
    """With one prompt less it is another mean, and would look as if the policy had changed."""
    told = describe(recipe(), [group(7), group(8)], every=True)
    only = {"pickscore": group(8)[1].rewards["pickscore"]}
    lost = group(8, rewards=only, log_p_perc={}, dropped=True, failures={"clip": "x"})
    lacking = group(8, rewards=only, failures={"clip": "x"})
    dropped = describe(recipe(), [group(7), lost], every=True)
    assert not [name for name in dropped if name.startswith(("reward/", "entropy/perceptual"))]
    optional = describe(recipe(), [group(7), lacking], every=True)
    assert [name for name in told if name not in optional] == [
        *("reward/clip_mean", "reward/clip_std_in_group", "reward/mean", "reward/std_in_group")
    ]
    for found in (dropped, optional):
        same = {name: told[name] for name in found if name != "groups/failed_rewards"}
        assert {name: found[name] for name in same} == same
        assert "diversity/vendi_clip" in found


SPREADS = {"pickscore": 1.0, "clip": 0.01}


def unlike(number: int, spreads: dict[str, float] = SPREADS) -> Group:
    """A group whose scores are independent, of these spreads, each around a mean of its own."""
    draws = np.random.default_rng(number)
    k = 400
    scores = {name: spread * draws.standard_normal(k) for name, spread in spreads.items()}
    rewards = {name: (draws.normal() + s).astype(np.float32) for name, s in scores.items()}
    seen = {"features": {"clip": draws.standard_normal((k, 4)).astype(np.float32)}}
    shapes = {"log_p_perc": {"pickscore": np.zeros((k, 2), np.float32)}}
    return group(
        number, rewards=rewards, log_p_policy=np.zeros((k, 3), np.float32), **seen, **shapes
    )


def normalizing(scope: str, *names: str, weights: tuple[float, float] = (1.0, 1.0)) -> Recipe:
    fields = recipe().model_dump()
    fields["objective"]["advantage_std"] = scope
    for (name, scorer), weight in zip(fields["scorers"].items(), weights, strict=True):
        scorer |= {"weight": weight, "normalize": name in names}
    return Recipe.model_validate(fields)


def correlations(chosen: Recipe, groups: list[Group]) -> np.ndarray:
    """Of each group's advantages with its scores, [G, scorers]."""
    batch, _, _ = shape(chosen, 3, groups, {})
    return np.array(
        [
            [np.corrcoef(row.weights.advantage[:, 0], s)[0, 1] for s in seen.rewards.values()]
            for row, (_, seen) in zip(batch.rows, groups, strict=True)
        ]
    )


@pytest.mark.parametrize("scope", ["group", "global"])
def test_normalized_rewards_of_unlike_spreads_correlate_alike_with_the_advantage(scope):
    groups = [unlike(0), unlike(1, {"pickscore": 1.0, "clip": 0.0003})]
    large, small = correlations(normalizing(scope), groups).T
    assert (large > 0.99).all()
    assert (abs(small) < 0.15).all()
    large, small = correlations(normalizing(scope, "pickscore", "clip"), groups).T
    np.testing.assert_allclose(large, small, atol=3e-3)
    assert (large > 0.6).all()
    # Its weight is all that tells them apart: (3 + rho) / (1 + 3 rho) in every group.
    tripled = normalizing(scope, "pickscore", "clip", weights=(3.0, 1.0))
    large, small = correlations(tripled, groups).T
    rho = [np.corrcoef(*seen.rewards.values())[0, 1] for _, seen in groups]
    expected = [(3 + r) / (1 + 3 * r) for r in rho]
    np.testing.assert_allclose(large / small, expected, rtol=1e-2)


def test_a_groups_mean_and_spread_do_not_reach_a_normalized_advantage():
    """Under the global std, too, which divides all groups by one number."""
    first, seen = group(0)
    moved = {name: 100 + 0.1 * scores for name, scores in seen.rewards.items()}
    groups = [(first, seen), group(0, rewards=moved)]
    batch, _, metrics = shape(normalizing("global", "pickscore", "clip"), 3, groups, {})
    ours, theirs = (row.weights.advantage for row in batch.rows)
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=0)
    assert metrics["reward/global_std"] < 2


def test_a_normalized_reward_that_is_the_same_for_all_images_leaves_the_others_to_decide():
    seen = group(0)[1]
    rewards = seen.rewards | {"clip": np.full(K, 0.1, np.float32)}
    batch, _, _ = shape(normalizing("group", "clip"), 3, [group(0, rewards=rewards)], {})
    expected = advantages(seen.rewards["pickscore"])
    np.testing.assert_allclose(batch.rows[0].weights.advantage[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 24, 30])
def test_a_group_whose_normalized_rewards_are_all_constant_teaches_nothing(size):
    flat = {name: np.full(size, 0.1, np.float32) for name in SPREADS}
    shapes = {
        "log_p_policy": np.zeros((size, 3), np.float32),
        "log_p_perc": {"pickscore": np.zeros((size, 2), np.float32)},
        "features": {"clip": np.ones((size, 4), np.float32)},
    }
    other = {name: np.arange(size).astype(np.float32) for name in SPREADS}
    groups = [group(0, rewards=flat, **shapes), group(1, rewards=other, **shapes)]
    chosen = normalizing("group", "pickscore", "clip")
    batch, _, metrics = shape(chosen, 3, groups, {})
    assert [row.group_id for row in batch.rows] == [1]
    assert metrics["groups/zero_std"] == 1
    assert metrics["groups/differ"] == 0.5


def test_metrics_of_normalized_rewards_are_raw():
    groups = [group(0), group(1)]
    found = describe(normalizing("group", "pickscore", "clip"), groups)
    assert found == describe(normalizing("group"), groups)
    sums = [sum(seen.rewards.values()) for _, seen in groups]
    assert found["reward/mean"] == pytest.approx(np.mean(sums), rel=1e-5)


def test_the_share_of_groups_whose_rewards_differ_is_of_the_rewards_themselves():
    """Marginal PEC tells images of equal reward apart; the reward does not."""
    equal = {"pickscore": np.ones(K, np.float32), "clip": np.ones(K, np.float32)}
    groups = [group(0), group(1), group(2, rewards=equal), group(3)]
    ours = recipe(name="marginal_pec", image_spaces=["pickscore"], strength=0.3)
    for made in (recipe(), ours):
        _, _, metrics = shape(made, 5, groups, {})
        assert metrics["groups/differ"] == 0.75
    assert metrics["groups/taught"] == 4


def test_a_kl_of_the_early_steps_holds_the_first_trained_ones_only():
    held = recipe(kl=0.1)
    objective = held.objective.model_copy(update={"kl_steps": 2, "kl_form": "mean"})
    batch, _, _ = shape(held.model_copy(update={"objective": objective}), 3, [group(0)], {})
    kl = batch.rows[0].weights.kl_reference
    assert kl is not None
    np.testing.assert_allclose(kl, np.tile([0.1, 0.1, 0.0], (K, 1)))


def test_it_holds_a_methods_own_kl_at_those_steps_only_too():
    held = recipe(name="gardo", image_spaces=("clip",), judges=("clip",))
    objective = held.objective.model_copy(update={"kl_steps": 1})
    batch, _, _ = shape(held.model_copy(update={"objective": objective}), 3, [group(0)], {})
    kl = batch.rows[0].weights.kl_reference
    assert kl is not None
    assert kl[:, 0].any()
    assert not kl[:, 1:].any()


def test_a_probe_whose_reward_has_failed_has_its_features():
    """A dropped prompt would look like another diversity, and move the strength."""
    chosen = recipe(name="marginal_pec", image_spaces=["clip"], strength="auto")
    lost = group(8, rewards={}, dropped=True)
    _, whole, _ = shape(chosen, 3, [group(0)], {}, probe=[group(7), group(8)])
    _, first, _ = shape(chosen, 3, [group(0)], {}, probe=[group(7), lost])
    assert first == whole


def test_methods_are_given_the_whole_log_prob_of_cps():
    chosen = recipe(name="clip_cov")
    chosen = chosen.model_copy(update={"sampling": Sampling(group_size=K, kind="cps", steps=4)})
    _, seen = group(0)
    signals = _signals(chosen, [group(0)], {}, [])
    expected = seen.log_p_policy / (2 * STD**2) - np.log(STD) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(signals.log_prob[0], expected, rtol=1e-5)
    plain = _signals(recipe(name="clip_cov"), [group(0)], {}, [])
    np.testing.assert_array_equal(plain.log_prob[0], seen.log_p_policy)
