from dataclasses import replace

import pytest
import torch

from percent_ray.data import arrow
from percent_ray.flow.noise import generator
from percent_ray.learn.batch import chunks
from percent_ray.objective import forward
from tests.learn.fake import (
    SHAPE,
    FakePolicy,
    draw_batch,
    fake_recipe,
    make_learner,
    resumed,
)

OLD = {"first": 0.25, "rise": 0.1, "after": 0, "most": 0.4}


def recipe_of(folder, *, kl=0.0, updates=2, times=3, **forward):
    return fake_recipe(
        folder,
        objective={"kl": kl, "advantage_clip": 1.5},
        forward={"times": times, "distribution": "shifted"} | forward,
        learner={"process": "forward", "old": OLD, "updates": updates, "ema_decay": 0},
    )


def train(learner, recipe, steps):
    """Batches of the untrained policy; the metrics of each step."""
    found = []
    for step in steps:
        batch = draw_batch(FakePolicy(), recipe, step=step, version=step)
        found.append(dict(learner.update(batch).metrics))
    return found


def direct_loss(policy, old, recipe, batch, images, *, kl):
    """docs/method.md, "The forward process", transcribed: one noise of one image at a time."""
    losses, beta, clip = [], recipe.forward.beta, recipe.objective.advantage_clip
    for number in images:
        row, k = batch.rows[number // 6], number % 6
        x0 = arrow.column(row.payload, "final")[k].clone()
        condition = {name: value.clone() for name, value in arrow.unpack(row.condition).items()}
        times = generator("forward_times", recipe.run.seed, row.group_id, k)
        order = torch.randperm(3, generator=times)
        u = (order + torch.rand(3, generator=times)) / 3
        for i, t in enumerate(3 * u / (1 + 2 * u)):
            drawn = generator("forward_noise", recipe.run.seed, row.group_id, k, i)
            eps = torch.randn(SHAPE, generator=drawn)
            x_t = ((1 - t) * x0 + t * eps)[None]
            v = policy.velocity(x_t, t[None], condition)[0]
            with torch.no_grad():
                v_old = old.velocity(x_t, t[None], condition)[0]
                with policy.reference():
                    v_ref = policy.velocity(x_t, t[None], condition)[0]
            q = (row.weights.advantage[k, 0] / clip).clamp(-1, 1) / 2 + 0.5
            plus = x_t[0] - t * (beta * v + (1 - beta) * v_old) - x0
            minus = x_t[0] - t * ((1 + beta) * v_old - beta * v) - x0
            parts = [
                weight * error.square().mean() / error.detach().abs().mean()
                for weight, error in ((q, plus), (1 - q, minus))
            ]
            losses.append(clip * sum(parts) / beta + kl * (v - v_ref).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("beta", "kl"), [(1.0, 0.0), (0.1, 0.3)])
def test_two_learner_steps_equal_the_loss_transcribed_with_autograd(tmp_path, beta, kl):
    recipe = recipe_of(tmp_path, kl=kl, beta=beta)
    learner, policy = make_learner(recipe)
    found = train(learner, recipe, range(2))

    plain, old = FakePolicy(), FakePolicy()
    weights = list(plain.trainable().values())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, eps=1e-4, weight_decay=1e-4)
    for step, metrics in enumerate(found):
        batch = draw_batch(FakePolicy(), recipe, step=step, version=step)
        losses = []
        for chunk in chunks([6] * 4, 2, seed=recipe.run.seed, version=step):
            loss = direct_loss(plain, old, recipe, batch, chunk, kl=kl)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 0.05)
            optimizer.step()
            losses.append(loss.item())
        assert metrics["loss/total"] == pytest.approx(sum(losses) / 2, rel=1e-4)
        assert ("kl/reference" in metrics) == bool(kl)
        d = (0.35, 0.4)[step]
        assert metrics["learner/old_decay"] == pytest.approx(d)
        with torch.no_grad():
            for name, weight in old.trainable().items():
                weight.copy_(d * weight + (1 - d) * plain.trainable()[name])
    for name, weight in policy.trainable().items():
        torch.testing.assert_close(weight, plain.trainable()[name], rtol=0, atol=1e-6)
    drawn = arrow.unpack(learner.publish()[0])
    for name, weight in old.trainable().items():
        torch.testing.assert_close(drawn[name], weight.data, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_step_starts_exactly_at_the_old_policy(tmp_path, dtype):
    """The same layouts and kernels; the second optimizer step is already away from it."""
    recipe = recipe_of(tmp_path)
    learner, _ = make_learner(recipe, dtype=dtype)
    [metrics] = train(learner, recipe, [0])
    assert metrics["velocity/first_moved_max"] == 0
    assert metrics["velocity/moved_max"] > 0


@pytest.mark.parametrize("micro_batch", [1, 4, 24])
def test_invariant_6_the_loss_does_not_depend_on_micro_batches(tmp_path, micro_batch):
    recipe = recipe_of(tmp_path)
    other = recipe.model_copy(
        update={"learner": recipe.learner.model_copy(update={"micro_batch": micro_batch})}
    )
    learner, policy = make_learner(recipe)
    found = train(learner, recipe, range(2))
    cut, cut_policy = make_learner(other)
    for one, two in zip(found, train(cut, other, range(2)), strict=True):
        same = [name for name in one if name not in ("signal/gradient", "signal/noise")]
        assert {k: two[k] for k in same} == pytest.approx({k: one[k] for k in same}, rel=1e-3)
    for name, weight in policy.trainable().items():
        torch.testing.assert_close(weight, cut_policy.trainable()[name], rtol=0, atol=1e-6)


def test_times_and_noises_are_functions_of_ids(tmp_path):
    """The same groups in another order, with another batch beside them: the same losses."""
    recipe = recipe_of(tmp_path, updates=1)
    batch = draw_batch(FakePolicy(), recipe)
    turned = replace(batch, rows=batch.rows[::-1])
    one, other = (make_learner(recipe)[0].update(b).metrics["loss/total"] for b in (batch, turned))
    assert one == pytest.approx(other, rel=1e-6)
    seeded = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": 1})})
    assert make_learner(seeded)[0].update(batch).metrics["loss/total"] != pytest.approx(
        one, rel=1e-3
    )


def test_invariant_8_save_load_continue_equals_the_straight_run_exactly(tmp_path):
    recipe = recipe_of(tmp_path, kl=0.1)
    straight, _ = make_learner(recipe)
    expected = train(straight, recipe, range(4))
    first, _ = make_learner(recipe)
    train(first, recipe, range(2))
    second, _ = resumed(first, recipe, tmp_path / "checkpoint")
    assert second.publish()[1] == first.publish()[1]
    assert train(second, recipe, range(2, 4)) == expected[2:]
    assert second.publish()[1] == straight.publish()[1]


def test_groups_are_drawn_with_the_old_weights(tmp_path):
    recipe = recipe_of(tmp_path)
    learner, policy = make_learner(recipe)
    train(learner, recipe, [0])
    trained = {name: p.detach().clone() for name, p in policy.trainable().items()}
    published = arrow.unpack(learner.publish()[0])
    with learner.drawing():
        for name, weight in policy.trainable().items():
            assert torch.equal(weight, published[name])
            assert (weight != trained[name]).any()
    assert all(torch.equal(p, trained[name]) for name, p in policy.trainable().items())


def test_a_batch_without_groups_moves_the_clock_and_what_draws_and_nothing_else(tmp_path):
    recipe = recipe_of(tmp_path)
    learner, policy = make_learner(recipe)
    train(learner, recipe, [0])
    before = learner.publish()[1]
    weights = {name: p.detach().clone() for name, p in policy.trainable().items()}
    empty = draw_batch(policy, recipe, groups=0, version=1)
    decay = forward.old_decay(2, **recipe.learner.old.model_dump())
    assert learner.update(empty).metrics == {
        "learner/images": 0,
        "learner/updates": 0,
        "learner/old_decay": decay,
    }
    assert learner.version == 2
    assert learner.publish()[1] != before
    assert all(torch.equal(p, weights[name]) for name, p in policy.trainable().items())
    assert "signal/descent" in train(learner, recipe, [2])[0]


def test_weights_of_transitions_have_no_place_here(tmp_path):
    recipe = recipe_of(tmp_path)
    batch = draw_batch(FakePolicy(), recipe)
    rows = [
        replace(row, weights=replace(row.weights, score=row.weights.advantage))
        for row in batch.rows
    ]
    with pytest.raises(
        ValueError, match=r"weights of transitions \(score\) in the forward process"
    ):
        make_learner(recipe)[0].update(replace(batch, rows=tuple(rows)))


def test_matching_learns_the_images_that_it_is_shown(tmp_path):
    """With every image as good as can be, the flow-matching loss falls."""
    recipe = recipe_of(tmp_path, updates=1)
    learner, _ = make_learner(recipe)
    batch = draw_batch(FakePolicy(), recipe)
    best = [
        replace(row, weights=row.weights.map(lambda w: torch.full_like(w, 1.5)))
        for row in batch.rows
    ]
    losses = [
        learner.update(replace(batch, version=version, rows=tuple(best))).metrics["loss/matching"]
        for version in range(30)
    ]
    assert losses[-1] < 0.97 * losses[0]
