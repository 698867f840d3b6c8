import asyncio
import gc
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from percent_ray.flow import sampler
from percent_ray.flow.sde import Transition
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.recipe.tree import Recipe, Role
from percent_ray.runtime.local import Local
from tests import tiny
from tests.end_to_end import world as worlds
from tests.fakes import FakeObserver


def run_locally(recipe: Recipe) -> FakeObserver:
    return asyncio.run(worlds.train(recipe, load(recipe)))


def load(recipe: Recipe) -> Local:
    return asyncio.run(Local.start(recipe, first=worlds.first(recipe)))


async def start(kind: Any, recipe: Recipe, folder: Path) -> Any:
    (folder / RECIPE_FILE).write_text(recipes.dump(recipe))
    return await kind.start(recipe, first=worlds.first(recipe), run_folder=folder, resume=None)


def assert_same(found: FakeObserver, expected: FakeObserver) -> None:
    """The same numbers at every step, but for float32 rounding."""
    steps = list(zip(worlds.numbers(found), worlds.numbers(expected), strict=True))
    assert steps
    for ours, theirs in steps:
        assert ours.keys() == theirs.keys()
        assert {k: pytest.approx(v, rel=1e-3, abs=1e-5) for k, v in theirs.items()} == ours


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_local_run_is_deterministic_and_on_policy_at_first(world, tmp_path, staleness: int):
    recipe = worlds.recipe(world, tmp_path, backend="local", max_staleness=staleness)
    once, again = run_locally(recipe), run_locally(recipe)
    assert worlds.numbers(once) == worlds.numbers(again)
    metrics = worlds.numbers(once)
    assert metrics[0]["ratio/first_max_dev"] < 1e-6
    assert [m["staleness/max"] for m in metrics] == [0, staleness, 0], "version 2 is a checkpoint"


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_forward_process_has_no_policy_entropy_and_no_ratio(world, tmp_path, staleness: int):
    recipe = worlds.recipe(world, tmp_path, backend="local", max_staleness=staleness)
    recipe = worlds.forward(recipe)
    once, again = run_locally(recipe), run_locally(recipe)
    assert worlds.numbers(once) == worlds.numbers(again)
    for metrics in [*worlds.numbers(once), *once.probed]:
        assert not [name for name in metrics if name.startswith(("entropy/", "ratio/"))]
        assert "diversity/vendi_clip" in metrics
        assert all(math.isfinite(value) for value in metrics.values())
    first, second, _ = worlds.numbers(once)
    assert first["velocity/first_moved_max"] == 0, "trained and old weights are the same at first"
    assert second["velocity/first_moved_max"] > 0, "the old policy is behind"
    assert [m["staleness/max"] for m in worlds.numbers(once)] == [0, staleness, 0]


@pytest.mark.parametrize(
    ("method", "loss", "solver"),
    [
        ({"name": "flow_grpo"}, "awm", "euler"),
        ({"name": "marginal_pec", "image_spaces": ["clip"], "strength": "auto"}, "nft", "dpmpp_2m"),
        ({"name": "gardo", "image_spaces": ["clip"]}, "nft", "euler"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_every_method_of_finished_images_runs_forward(world, tmp_path, method, loss, solver):
    base = worlds.forward(worlds.recipe(world, tmp_path, backend="local"))
    fields = base.model_dump() | {"method": method}
    fields["run"]["steps"] = 1
    fields["forward"]["loss"] = loss
    fields["sampling"]["solver"] = solver
    [metrics] = worlds.numbers(run_locally(Recipe.model_validate(fields)))
    assert metrics["learner/updates"] == 2
    assert all(math.isfinite(value) for value in metrics.values())
    assert ("kl/reference" in metrics) == (method["name"] == "gardo")


@pytest.mark.parametrize(
    ("method", "perceptual"),
    [
        ({"name": "flow_grpo"}, {"measure": False}),
        ({"name": "pec", "omega": "variance"}, {"decode": "clean", "steps": 2}),
        ({"name": "pcvae", "native": True}, {}),
        ({"name": "marginal_pec", "image_spaces": ["clip"], "strength": "auto"}, {}),
        ({"name": "entropy_reg"}, {"measure": False}),
        ({"name": "clip_cov", "spaces": ["pickscore"]}, {"measure": False}),
        ({"name": "kl_cov"}, {}),
        ({"name": "gardo", "image_spaces": ["clip"]}, {}),
    ],
    ids=lambda value: value.get("name"),
)
def test_every_method_runs(world, tmp_path, method, perceptual):
    base = worlds.recipe(world, tmp_path, backend="local")
    fields = base.model_dump() | {"perceptual": base.perceptual.model_dump() | perceptual}
    fields |= {"method": method}
    fields["run"]["steps"] = 1
    observer = run_locally(Recipe.model_validate(fields))
    [metrics] = worlds.numbers(observer)
    assert metrics["learner/updates"] == 2
    assert all(math.isfinite(value) for value in metrics.values())
    adds = method["name"] == "marginal_pec" or (method["name"] == "pec")
    shaped = metrics["reward/shaped_mean"] != pytest.approx(metrics["reward/mean"])
    assert shaped == adds
    measured = any(name.startswith("entropy/perceptual") for name in metrics)
    assert measured == (perceptual.get("measure", True) or "spaces" in method)
    assert ("kl/reference" in metrics) == (method["name"] == "gardo")


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_run_whose_transitions_the_tiny_decoder_scores(world, tmp_path, family):
    """In steps and in probes the perceptual entropy is another, and so is what PEC learns; pictures
    and their rewards before the first update are the same."""
    recipe = worlds.recipe(world, tmp_path, backend="local", max_staleness=0)
    if family == "flux":
        path = tiny.build_flux(tmp_path / "flux")
        changes = {"family": "flux", "path": path, "t5": True, "guidance": 3.5}
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})
    full, small = (run_locally(r) for r in (recipe, worlds.with_tiny_decoder(recipe, world)))
    for theirs, ours in [
        *zip(worlds.numbers(full), worlds.numbers(small), strict=True),
        *zip(full.probed, small.probed, strict=True),
    ]:
        name = "entropy/perceptual_pickscore"
        assert math.isfinite(ours[name])
        assert ours[name] != theirs[name]
    before, after = worlds.numbers(full)[0], worlds.numbers(small)[0]
    for name in ("reward/mean", "diversity/vendi_clip", "entropy/policy"):
        assert after[name] == before[name]
    assert after["reward/shaped_mean"] != before["reward/shaped_mean"]


def schedules_entropy(sigmas: list[float], noise_level: float, steps: range) -> float:
    """docs/method.md, "The SDE step" and "Policy entropy", transcribed."""
    entropies = []
    for i in steps:
        now, then = sigmas[i], sigmas[i + 1]
        g = noise_level * math.sqrt(now / (1 - (sigmas[1] if now == 1 else now)))
        std = g * math.sqrt(now - then)
        entropies.append(0.5 + 0.5 * math.log(2 * math.pi) + math.log(std))
    return sum(entropies) / len(entropies)


def assert_entropy_is_the_schedules(recipe: Recipe, roles: Local) -> None:
    """Measured on drawn latents, in every step and in the probes before and after training."""
    observer = asyncio.run(worlds.train(recipe, roles))
    expected = schedules_entropy(roles.policy.sigmas(4).tolist(), 0.7, range(3))
    images = recipe.sampling.group_size * recipe.data.groups_per_step
    drawn = 3 * images * math.prod(roles.policy.latent_shape)
    assert observer.probes[0] == 0
    assert observer.probes[-1] == recipe.run.steps
    for metrics, elements in [
        *((m, drawn) for m in worlds.numbers(observer)),
        *((m, drawn / recipe.data.groups_per_step) for m in observer.probed),
    ]:
        assert metrics["entropy/policy_schedule"] == pytest.approx(expected, abs=1e-6)
        # -log pi of a normal draw has variance 1/2 an element.
        standard_error = math.sqrt(0.5 / elements)
        measured = metrics["entropy/policy"]
        assert abs(measured - expected) < 3 * standard_error
        assert measured != expected, "a measurement, not the formula"


def test_invariant_7_measured_policy_entropy_is_the_schedules_constant(world, tmp_path):
    recipe = worlds.recipe(world, tmp_path, backend="local")
    roles = load(recipe)
    before = {name: p.detach().clone() for name, p in roles.policy.trainable().items()}
    assert_entropy_is_the_schedules(recipe, roles)
    after = roles.policy.trainable()
    assert any((before[name] != after[name]).any() for name in before), "the policy has changed"


@pytest.mark.parametrize("wrong", ["std", "draw", "log_prob"])
def test_invariant_7_fails_for_a_policy_that_breaks_it(world, tmp_path, monkeypatch, wrong):
    """The mutants: a std, a draw or a log-prob that is a fifth off."""
    if wrong == "std":
        honest = sampler.transition
        monkeypatch.setattr(
            sampler,
            "transition",
            lambda *args, **kwargs: louder(honest(*args, **kwargs)),
        )
    else:
        honest = getattr(Transition, wrong)
        monkeypatch.setattr(Transition, wrong, lambda step, x: honest(louder(step), x))
    recipe = worlds.recipe(world, tmp_path, backend="local")
    # Drawn log-probs of another std are refused before the first update.
    replayed = recipe.objective.model_copy(update={"old_log_prob": "replayed"})
    recipe = recipe.model_copy(update={"objective": replayed})
    roles = load(recipe)
    with pytest.raises(AssertionError):
        assert_entropy_is_the_schedules(recipe, roles)


def louder(step: Transition) -> Transition:
    return replace(step, std=1.2 * step.std)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "reverse",
        pytest.param("forward", marks=pytest.mark.study),
        pytest.param("flux", marks=pytest.mark.study),
    ],
)
def test_invariant_9_the_ray_runtime_gives_the_local_numbers(world, tmp_path, ray_cluster, what):
    from percent_ray.runtime.cluster import Cluster

    recipe = worlds.recipe(world, tmp_path)
    if what != "reverse":
        recipe = getattr(worlds, what)(recipe)

    async def on_ray() -> FakeObserver:
        roles = await start(Cluster, recipe, tmp_path)
        try:
            return await worlds.train(recipe, roles)
        finally:
            await roles.close()

    assert_same(asyncio.run(on_ray()), run_locally(recipe))


@pytest.mark.ray
@pytest.mark.slow
def test_killed_actors_lose_and_double_no_group(world, tmp_path, ray_cluster):
    """kill -9 of a rollout actor and of a perception actor while they work: the run ends as if
    nothing had happened, down to its numbers."""
    from percent_ray.runtime.cluster import Cluster

    recipe = worlds.recipe(world, tmp_path)
    killed: list[int] = []

    class Killing(Cluster):
        """Kills both actors when group 3 is sampled, and again counts what comes of it."""

        async def sample(self, group_id, prompt, version):
            work = asyncio.ensure_future(super().sample(group_id, prompt, version))
            if group_id == 3:
                kill("RolloutActor")
            return await work

        async def perceive(self, trajectory, *, pictures):
            work = asyncio.ensure_future(super().perceive(trajectory, pictures=pictures))
            if trajectory.group_id == 2:
                kill("PerceptionActor")
            return await work

    def kill(name: str) -> None:
        for process in psutil.Process().children(recursive=True):  # of our own cluster
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                process.kill()
                killed.append(process.pid)

    async def on_ray() -> FakeObserver:
        roles = await start(Killing, recipe, tmp_path)
        try:
            return await worlds.train(recipe, roles)
        finally:
            await roles.close()

    observer = asyncio.run(on_ray())
    assert len(killed) == 2
    assert [m["groups/dropped"] for m in worlds.numbers(observer)] == [0, 0, 0]
    assert_same(observer, run_locally(recipe))


@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_one_clear_error(world, tmp_path, ray_cluster):
    from percent_ray.runtime.cluster import Cluster

    recipe = worlds.recipe(world, tmp_path, rollout=Role(workers=3, cpus=0.1, gpus=1))
    with pytest.raises(
        ValueError, match=r"runtime\.rollout: 3 workers x 0.1 CPU and 1 GPU asked, none of them"
    ):
        asyncio.run(start(Cluster, recipe, tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_an_actors_error_reaches_the_driver_as_itself(world, tmp_path, ray_cluster, caplog):
    """And nothing else does: no line of what was under way beside it."""
    from percent_ray.runtime.cluster import Cluster

    base = worlds.recipe(world, tmp_path)
    recipe = base.model_copy(update={"model": base.model.model_copy(update={"resolution": 17})})
    with pytest.raises(ValueError, match=r"model\.resolution 17 does not fit"):
        asyncio.run(
            Cluster.start(
                recipe, first=worlds.first(recipe), run_folder=Path(tmp_path), resume=None
            )
        )
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
