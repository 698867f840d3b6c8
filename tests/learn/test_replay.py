import math
from dataclasses import replace

import pytest
import torch

from percent_ray.data import arrow
from percent_ray.flow.noise import generator
from percent_ray.flow.sde import transition
from percent_ray.learn.batch import Images, chunks
from percent_ray.learn.engine import TorchEngine
from percent_ray.learn.replay import Replay
from percent_ray.roles.learner import Learner
from tests.learn.fake import FakePolicy, draw_batch, fake_recipe, make_learner

CPU = torch.device("cpu")


def with_weights(batch, names):
    """Random weights under the given names."""
    rows = []
    for row in batch.rows:
        source = generator("weights", row.group_id)
        drawn = {n: torch.rand(row.weights.advantage.shape, generator=source) for n in names}
        rows.append(replace(row, weights=replace(row.weights, **drawn)))
    return replace(batch, rows=tuple(rows))


def direct_loss(policy, recipe, batch, images, *, kl=0.0, form="gaussian", guarded=False):
    """docs/method.md, "GRPO", transcribed: one image at a time in plain tensor arithmetic."""
    sigmas, eta = policy.sigmas(recipe.sampling.steps).tolist(), recipe.sampling.noise_level
    weights = [row.weights for row in batch.rows]
    rows = [(g, k) for g, w in enumerate(weights) for k in range(len(w.advantage))]
    losses = []
    for group, k in (rows[i] for i in images):
        payload, condition = batch.rows[group].payload, batch.rows[group].condition
        latents = torch.from_numpy(payload["latents"].chunk(0).to_numpy_ndarray().copy())[k]
        log_probs = torch.from_numpy(payload["log_probs"].chunk(0).to_numpy_ndarray().copy())[k]
        embeds = torch.from_numpy(condition["embeds"].chunk(0).to_numpy_ndarray().copy())[0]
        means = torch.from_numpy(payload["means"].chunk(0).to_numpy_ndarray().copy())[k]
        for i in range(recipe.sampling.steps - 1):
            now, then = sigmas[i], sigmas[i + 1]
            dt, g = then - now, eta * math.sqrt(now / (1 - (sigmas[1] if now == 1 else now)))
            s = g * math.sqrt(-dt)

            def mean(x=latents[i][None], now=now, g=g, dt=dt, embeds=embeds):
                v = policy.velocity(x, torch.tensor([now]), {"embeds": embeds})
                drift = g**2 / (2 * now)
                return x * (1 + drift * dt) + v * (1 + drift * (1 - now)) * dt

            mu = mean()
            residual = (latents[i + 1][None] - mu).square().mean()
            log_prob = -residual / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)
            change = log_prob - log_probs[i]
            if guarded:
                change = s * (change + (mu - means[i]).square().mean() / (2 * s**2))
            ratio = change.exp()
            low, high = 1 - recipe.objective.clip_low, 1 + recipe.objective.clip_high
            advantage = weights[group].advantage[k, i]
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))
            if weights[group].score is not None:
                loss = loss - weights[group].score[k, i] * ratio
            if guarded:
                loss = loss / -dt
            if weights[group].log_prob is not None:
                loss = loss + weights[group].log_prob[k, i] * log_prob
            if weights[group].kl_old is not None:
                gap = (mu - means[i]).square().mean() / (2 * s**2)
                loss = loss + weights[group].kl_old[k, i] * gap
            if kl:
                with torch.no_grad(), policy.reference():
                    reference = mean()
                scale = {"gaussian": 2 * s**2, "flow_grpo": 2 * g**2, "mean": 1}[form]
                loss = loss + kl * (mu - reference).square().mean() / scale
            losses.append(loss)
    return torch.stack(losses).mean()


def test_the_learning_rate_is_half_after_its_half_life_also_after_a_resume(tmp_path):
    """AdamW written out: the same gradients at 1, 1/sqrt 2 and 1/2 of the learning rate."""
    recipe = fake_recipe(
        tmp_path, learner={"updates": 1, "ema_decay": 0, "lr_half_life": 2, "lr": 1e-2}
    )
    learner, policy = make_learner(recipe)
    plain = FakePolicy()
    weights = list(plain.trainable().values())
    optimizer = torch.optim.AdamW(weights, eps=1e-4, weight_decay=1e-4)
    for version in range(3):
        if version == 2:  # from a checkpoint of another rate
            (tmp_path / "saved").mkdir()
            learner.save(tmp_path / "saved")
            learner, policy = make_learner(recipe)
            learner.load(tmp_path / "saved")
        batch = draw_batch(FakePolicy(), recipe, step=version, version=version, drawn_by=0)
        metrics = learner.update(batch).metrics
        for group in optimizer.param_groups:
            group["lr"] = metrics["learner/lr"]
        assert metrics["learner/lr"] == pytest.approx(1e-2 * 0.5 ** (version / 2))
        optimizer.zero_grad()
        direct_loss(plain, recipe, batch, range(24)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.05)
        optimizer.step()
        for name, weight in policy.trainable().items():
            torch.testing.assert_close(weight, plain.trainable()[name], rtol=0, atol=2e-7)


GUARD = {"ratio": "guard", "step_weights": "guard"}


@pytest.mark.parametrize(
    ("objective", "added"),
    [
        ({}, ()),
        ({"kl": 0.3}, ()),
        ({"kl": 0.3, "kl_form": "flow_grpo"}, ()),
        ({"kl": 0.3, "kl_form": "mean"}, ()),
        ({}, ("score", "log_prob")),
        ({"kl": 0.3}, ("kl_old",)),
        (GUARD, ("score",)),
        (GUARD | {"kl": 0.3}, ("kl_old",)),
    ],
    ids=["grpo", "kl", "flow_grpo", "mean", "native", "kl_old", "guard", "guard_kl"],
)
def test_update_equals_the_loss_transcribed_with_autograd(tmp_path, objective, added):
    recipe = fake_recipe(tmp_path, objective=objective, learner={"updates": 2, "ema_decay": 0})
    kl, form = objective.get("kl", 0.0), objective.get("kl_form", "gaussian")
    learner, policy = make_learner(recipe)
    batch = with_weights(draw_batch(policy, recipe), added)
    update = learner.update(batch)

    plain = FakePolicy()
    weights = list(plain.trainable().values())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, eps=1e-4, weight_decay=1e-4)
    losses, norms = [], []
    for chunk in chunks([6] * 4, 2, seed=recipe.run.seed, version=0):
        loss = direct_loss(
            plain, recipe, batch, chunk, kl=kl, form=form, guarded="ratio" in objective
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(weights, 0.05).item())
        optimizer.step()
        losses.append(loss.item())

    assert update.metrics["loss/total"] == pytest.approx(sum(losses) / 2, abs=1e-6)
    assert update.metrics["grad/norm"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert ("kl/reference" in update.metrics) == bool(kl)
    for name, weight in policy.trainable().items():
        torch.testing.assert_close(weight, plain.trainable()[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_invariant_3_first_ratio_is_1(tmp_path, storage, ratio):
    """Also of GRPO-Guard's, which looks at means, and those are stored rounded."""
    recipe = fake_recipe(
        tmp_path,
        sampling={"storage_dtype": storage},
        learner={"micro_batch": 6},
        objective={"ratio": ratio},
    )
    learner, policy = make_learner(recipe)
    for step in range(2):
        batch = draw_batch(policy, recipe, step=step, version=step)
        metrics = learner.update(batch).metrics
        rounded = (ratio, storage) == ("guard", "bfloat16")
        assert metrics["ratio/first_max_dev"] < (2e-5 if rounded else 2e-6)
        assert metrics["ratio/max_dev"] > 1e-4, "the second optimizer step is off policy"


def test_metrics_are_means_over_every_transition(tmp_path):
    """After enough steps on one batch some ratios leave the clip range on either side."""
    recipe = fake_recipe(tmp_path, objective={"clip_low": 1e-3, "clip_high": 2e-3})
    learner, policy = make_learner(recipe)
    batch = draw_batch(policy, recipe)
    for version in range(3):
        metrics = learner.update(replace(batch, version=version)).metrics
    assert metrics["learner/images"] == 24
    assert metrics["learner/updates"] == 2
    assert 0 < metrics["ratio/clip_low"] < 1
    assert 0 < metrics["ratio/clip_high"] < 1
    assert metrics["ratio/clip_low"] + metrics["ratio/clip_high"] < metrics["ratio/outside"] <= 1
    assert abs(metrics["ratio/mean"] - 1) < metrics["ratio/max_dev"]
    assert 0 < metrics["kl/approx"] < metrics["ratio/max_dev"] ** 2


def test_replayed_old_log_probs_are_the_learners_before_its_first_update(tmp_path):
    """Of images that other weights have drawn, in three optimizer steps."""
    changes = {"learner": {"updates": 3, "ema_decay": 0, "micro_batch": 4}}
    recipe = fake_recipe(tmp_path, objective={"old_log_prob": "replayed"}, **changes)
    batch = draw_batch(FakePolicy(seed=5), recipe)
    learner, _ = make_learner(recipe)
    found = [learner.update(replace(batch, version=version)) for version in range(2)]
    plain, _ = make_learner(fake_recipe(tmp_path, **changes))
    for version, update in enumerate(found):
        own = replace(batch, rows=own_log_probs(plain._policy, recipe, batch.rows), version=version)
        expected = plain.update(own)
        assert update.metrics["ratio/first_max_dev"] == 0
        assert update.metrics["loss/total"] == pytest.approx(expected.metrics["loss/total"], 1e-4)
        assert update.metrics["ratio/max_dev"] > 1e-4
    for name, weight in learner._policy.trainable().items():
        torch.testing.assert_close(weight, plain._policy.trainable()[name], rtol=0, atol=1e-6)


class BySize(FakePolicy):
    """Rounds a batch of one image otherwise, as matrix products in bfloat16 do."""

    def velocity(self, latents, sigma, condition):
        return super().velocity(latents, sigma, condition) + 1e-2 * (len(latents) == 1)


def test_padding_leaves_an_images_own_old_log_prob_alone(tmp_path):
    """A rank with fewer micro-batches takes its first image again, in a batch of its own."""
    recipe, policy = fake_recipe(tmp_path, objective={"old_log_prob": "replayed"}), BySize()
    replay = Learner(recipe, policy, TorchEngine(recipe.learner, policy))._process
    batch = draw_batch(FakePolicy(), recipe)
    images = Images(batch, replay.columns(batch))

    parts = [images.take(which, CPU, padding=len(which) == 1) for which in ([0, 1, 2], [0])]
    replay.begin(iter(parts))
    tally = replay.tally(CPU)
    assert all(len([*replay.losses(part, tally)]) == 3 for part in parts)
    assert tally.largest.tolist() == [0]


class OtherKernels(FakePolicy):
    """Rounds otherwise with gradients than without, as compiled blocks do in bfloat16, and other
    kernels may."""

    def velocity(self, latents, sigma, condition):
        return super().velocity(latents, sigma, condition) + 1e-2 * torch.is_grad_enabled()


@pytest.mark.parametrize("compiled", [True, False])
def test_replayed_old_log_probs_are_taken_as_they_are_learned_from(tmp_path, compiled):
    """In two optimizer steps at no learning rate; and what was drawn without them is refused."""
    changes = {"learner": {"updates": 2, "ema_decay": 0, "lr": 1e-12}}
    changes["model"] = {"compile": compiled}
    batch = draw_batch(OtherKernels(), fake_recipe(tmp_path))
    for objective in ({"old_log_prob": "replayed"}, {"clip_low": 1e-4}):
        recipe, policy = fake_recipe(tmp_path, objective=objective, **changes), OtherKernels()
        learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
        if "clip_low" not in objective:
            assert learner.update(batch).metrics["ratio/max_dev"] < 2e-6
            continue
        with pytest.raises(
            ValueError, match=r"_prob replayed, model\.(compile false|dtype float32), or"
        ):
            learner.update(batch)


@torch.no_grad()
def own_log_probs(policy, recipe, rows):
    """The rows with log-probs of the present policy in the place of the drawn ones."""
    sigmas, given = policy.sigmas(recipe.sampling.steps), []
    for row in rows:
        latents, condition = arrow.column(row.payload, "latents"), arrow.unpack(row.condition)
        log_probs = []
        for step in range(recipe.sampling.steps - 1):
            now = latents[:, step]
            velocity = policy.velocity(now, sigmas[step].expand(len(now)), condition)
            moved = transition(
                velocity,
                now,
                sigmas[step],
                sigmas[step + 1],
                sigma_second=sigmas[1],
                noise_level=recipe.sampling.noise_level,
                kind="flow_sde",
            )
            log_probs.append(moved.log_prob(latents[:, step + 1]))
        payload = arrow.trajectory_table(
            latents=latents,
            means=arrow.column(row.payload, "means"),
            log_probs=torch.stack(log_probs, dim=1),
            final=arrow.column(row.payload, "final"),
            steps=arrow.steps(row.payload),
        )
        given.append(replace(row, payload=payload))
    return tuple(given)


def test_a_ratio_that_is_not_1_before_the_first_update_trains_nothing(tmp_path):
    recipe = fake_recipe(tmp_path)
    batch = draw_batch(FakePolicy(seed=5), recipe)
    learner, _ = make_learner(recipe)
    _, before = learner.publish()
    message = r"up to .* from 1 \(\d+% of .* clip_high, 0\.02; set objective\.old_log_prob replayed"
    with pytest.raises(ValueError, match=message):
        learner.update(batch)
    assert (learner.version, learner.publish()[1]) == (0, before)


def test_the_floor_is_measured_at_each_step_and_only_on_what_the_weights_have_drawn(tmp_path):
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    for step in (0, 1):
        metrics = learner.update(draw_batch(policy, recipe, step=step, version=step)).metrics
        assert {n for n in metrics if "floor" in n} == {"ratio/floor", "ratio/floor_outside"}
        assert metrics["ratio/floor"] < 2e-6

    other = draw_batch(FakePolicy(seed=5), recipe, drawn_by=-1)
    learner, _ = make_learner(recipe)
    stale = learner.update(other).metrics
    assert stale["ratio/first_max_dev"] > 0.02
    assert "ratio/floor" not in stale
    with pytest.raises(ValueError, match="before the first update"):
        learner.update(draw_batch(FakePolicy(seed=5), recipe, version=1))


def test_a_run_is_checked_once_also_where_it_is_resumed(tmp_path):
    """The floor of trained weights is another, and no resumed run may be refused for it."""
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    learner.update(draw_batch(policy, recipe))
    learner.save(tmp_path)
    resumed, _ = make_learner(recipe)
    resumed.load(tmp_path)
    other = draw_batch(FakePolicy(seed=5), recipe, step=1, version=1)
    metrics = resumed.update(other).metrics
    assert metrics["ratio/floor"] == metrics["ratio/first_max_dev"] > 0.02
    assert metrics["ratio/floor_outside"] > 0


def test_the_floor_is_logged_where_the_first_step_has_taught_nothing(tmp_path):
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    learner.update(draw_batch(policy, recipe, groups=0))
    assert "ratio/floor" in learner.update(draw_batch(policy, recipe, version=1)).metrics


def counted(count, method):
    def call(*arguments):
        count.append(1)
        return method(*arguments)

    return call


def test_steps_that_no_kl_holds_make_no_pass_of_the_reference(tmp_path, monkeypatch):
    entered = []
    metrics = {}
    for kl_steps in (0, 1):
        recipe = fake_recipe(tmp_path, objective={"kl": 0.1, "kl_steps": kl_steps})
        learner, policy = make_learner(recipe)
        batch = draw_batch(policy, recipe)
        rows = []
        for row in batch.rows:
            held = torch.full_like(row.weights.advantage, 0.1)
            held[..., kl_steps or 99 :] = 0
            rows.append(replace(row, weights=replace(row.weights, kl_reference=held)))
        count = []
        with monkeypatch.context() as patch:
            patch.setattr(Replay, "_referred", counted(count, Replay._referred))
            metrics[kl_steps] = learner.update(replace(batch, rows=tuple(rows))).metrics
        entered.append(len(count))
    assert entered[0] == 3 * entered[1] > 0, "of three trained steps"
    assert metrics[1]["kl/reference"] > 0


def test_a_batch_without_groups_takes_no_optimizer_step(tmp_path):
    learner, policy = make_learner(fake_recipe(tmp_path))
    _, before = learner.publish()
    empty = draw_batch(policy, fake_recipe(tmp_path), groups=0)
    update = learner.update(empty)
    assert update.metrics == {"learner/images": 0, "learner/updates": 0}
    assert (update.version, learner.publish()[1]) == (1, before)


def test_fewer_images_than_updates(tmp_path):
    recipe = fake_recipe(tmp_path, learner={"updates": 4})
    learner, policy = make_learner(recipe)
    batch = draw_batch(policy, recipe, groups=1, images=3)
    assert learner.update(batch).metrics["learner/updates"] == 3


def test_groups_of_one_step_may_have_different_windows(tmp_path):
    recipe = fake_recipe(tmp_path, learner={"updates": 1})
    learner, policy = make_learner(recipe)
    batch = draw_batch(policy, recipe, groups=2)
    windows = zip(batch.rows, ((0, 2), (1, 3)), strict=True)
    rows = [
        replace(
            row,
            payload=cut(row.payload, *window),
            weights=row.weights.map(lambda weight: weight[:, :2]),
        )
        for row, window in windows
    ]
    assert learner.update(replace(batch, rows=tuple(rows))).metrics["ratio/first_max_dev"] < 2e-6


def cut(payload, start, stop):
    return arrow.trajectory_table(
        latents=arrow.column(payload, "latents")[:, start : stop + 1],
        means=arrow.column(payload, "means")[:, start:stop],
        log_probs=arrow.column(payload, "log_probs")[:, start:stop],
        final=arrow.column(payload, "final"),
        steps=range(start, stop),
    )
