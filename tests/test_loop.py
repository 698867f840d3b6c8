import asyncio
from pathlib import Path

import pytest
import torch

from percent_ray.data.prompts import PromptStream
from percent_ray.loop import Loop, Progress
from percent_ray.recipe.tree import Data, Learner, Monitor, Recipe, Run, Runtime, Sampling
from percent_ray.types import Prompt
from tests.fakes import FakeObserver, FakeRoles

PROMPTS = [Prompt(f"prompt {i}") for i in range(5)]


def recipe(tmp_path: Path, *, staleness: int = 1, every: int = 3, steps: int = 7) -> Recipe:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(p.text for p in PROMPTS))
    return Recipe(
        run=Run(steps=steps, checkpoint_every=every),
        sampling=Sampling(group_size=4),
        data=Data(prompts=str(prompts), groups_per_step=3),
        learner=Learner(micro_batch=2),
        monitor=Monitor(probe_every=4),
        runtime=Runtime(max_staleness=staleness),
    )


def build(recipe: Recipe, roles: FakeRoles, start: int = 0) -> tuple[Loop, FakeObserver, list[int]]:
    observer, checkpoints = FakeObserver(), []

    async def checkpoint(progress: Progress) -> None:
        checkpoints.append(progress.version)

    loop = Loop(
        recipe,
        roles,
        stream=PromptStream(PROMPTS, seed=0),
        probes=PROMPTS[:2],
        observer=observer,
        checkpoint=checkpoint,
        progress=Progress(start),
    )
    return loop, observer, checkpoints


def train(
    recipe: Recipe, roles: FakeRoles, start: int = 0
) -> tuple[Progress, FakeObserver, list[int]]:
    loop, observer, checkpoints = build(recipe, roles, start)
    return asyncio.run(loop.run()), observer, checkpoints


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_invariant_1_and_2_one_version_a_group_and_bounded_age(tmp_path: Path, staleness: int):
    roles = FakeRoles(seed=staleness)
    progress, observer, checkpoints = train(recipe(tmp_path, staleness=staleness), roles)
    assert progress.version == 7
    trained = [(group, version) for group, version in roles.sampled if group >= 0]
    assert sorted(group for group, _ in trained) == list(range(21)), "each group exactly once"
    for step, batch in enumerate(roles.consumed):
        assert batch.version == step
        assert {row.group_id for row in batch.rows} == {3 * step, 3 * step + 1, 3 * step + 2}
        for row in batch.rows:
            assert (row.group_id, row.version) in trained
            assert 0 <= batch.version - row.version <= staleness
    assert checkpoints == [3, 6, 7]
    assert [step for step, _, _ in observer.steps] == list(range(7))
    assert observer.probes == [0, 4, 7]


def test_a_checkpoint_never_lies_ahead_of_the_record(tmp_path: Path, monkeypatch):
    """Whenever a run is killed, what its last checkpoint skips is in the metrics file."""
    loop, observer, _ = build(recipe(tmp_path), FakeRoles())
    recorded = []

    async def checkpoint(progress: Progress) -> None:
        recorded.append((progress.version, [step for step, _, _ in observer.steps]))

    monkeypatch.setattr(loop, "checkpoint", checkpoint)
    asyncio.run(loop.run())
    assert recorded == [(version, list(range(version))) for version in (3, 6, 7)]


def test_invariant_4_the_driver_passes_references_on_unopened(tmp_path: Path):
    roles = FakeRoles()
    train(recipe(tmp_path), roles)
    refs = {(row.payload, row.condition) for batch in roles.consumed for row in batch.rows}
    assert refs == {(f"payload-{i}", f"condition-{i}") for i in range(21)}


def test_the_same_seeds_give_the_same_batches_however_fast_the_actors_are(tmp_path: Path):
    one, two = FakeRoles(seed=1), FakeRoles(seed=2)
    train(recipe(tmp_path), one)
    train(recipe(tmp_path), two)
    for a, b in zip(one.consumed, two.consumed, strict=True):
        assert [(r.group_id, r.version) for r in a.rows] == [
            (r.group_id, r.version) for r in b.rows
        ]
        for x, y in zip(a.rows, b.rows, strict=True):
            assert torch.equal(x.weights.advantage, y.weights.advantage)


def test_a_resumed_run_consumes_what_the_straight_run_does(tmp_path: Path):
    straight, resumed = FakeRoles(seed=1), FakeRoles(seed=2)
    train(recipe(tmp_path), straight)
    train(recipe(tmp_path), resumed, start=3)
    assert [
        (row.group_id, row.version) for batch in straight.consumed[3:] for row in batch.rows
    ] == [(row.group_id, row.version) for batch in resumed.consumed for row in batch.rows]


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_stop_during_the_first_probe_finishes_the_step_at_hand(tmp_path, monkeypatch, staleness):
    loop, observer, checkpoints = build(recipe(tmp_path, staleness=staleness), FakeRoles())
    probe = observer.probe

    def stop(version, metrics, pictures):
        probe(version, metrics, pictures)
        loop.stopping = True

    monkeypatch.setattr(observer, "probe", stop)
    assert asyncio.run(loop.run()).version == 1
    assert checkpoints == [1]


def test_a_dropped_group_is_left_out_and_counted(tmp_path: Path):
    roles = FakeRoles(dropped=[4])
    _, observer, _ = train(recipe(tmp_path), roles)
    assert [row.group_id for row in roles.consumed[1].rows] == [3, 5]
    assert [metrics["groups/dropped"] for _, metrics, _ in observer.steps] == [0, 1, 0, 0, 0, 0, 0]


def test_a_step_without_any_group_ends_the_run_with_the_reason(tmp_path: Path):
    with pytest.raises(ValueError, match=r"step 1: every group was dropped; pickscore: broken"):
        train(recipe(tmp_path), FakeRoles(dropped=[3, 4, 5]))


def test_an_error_of_a_role_ends_the_run(tmp_path: Path):
    class Broken(FakeRoles):
        async def perceive(self, trajectory, *, pictures):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train(recipe(tmp_path), Broken())


@pytest.mark.parametrize("bad", [4, -2], ids=["step", "probe"])
def test_what_was_asked_beside_a_call_that_failed_does_not_go_on(tmp_path: Path, bad: int):
    """A learner group is then built again, and the same groups are asked for: twice would be twice
    the work, and their answers of another version."""
    begun: set[int] = set()
    ended: set[int] = set()

    class Broken(FakeRoles):
        async def perceive(self, trajectory, *, pictures):
            group = trajectory.group_id
            if group == bad:
                await asyncio.sleep(0.01)
                raise OSError("disk full")
            begun.add(group)
            try:
                if group in (bad - 1, bad + 1):
                    await asyncio.sleep(60)
                return await super().perceive(trajectory, pictures=pictures)
            finally:
                ended.add(group)

    async def scene() -> None:
        loop, _, _ = build(recipe(tmp_path), Broken())
        with pytest.raises(OSError, match="disk full"):
            await loop.run()
        assert begun == ended, "when the run has ended"

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_sampling_perception_and_learning_overlap(tmp_path: Path):
    _, observer, _ = train(recipe(tmp_path, every=100), FakeRoles())
    spans = [span for _, _, found in observer.steps for span in found]
    updates = [span for span in spans if span.stage == "update"]
    samples = [span for span in spans if span.stage == "sample"]
    assert any(u.start < s.stop and s.start < u.stop for u in updates for s in samples)


def test_failures_are_told_of_steps_and_of_dropped_groups(tmp_path: Path):
    _, observer, _ = train(recipe(tmp_path), FakeRoles(dropped=[4, -1]))
    failed = {"pickscore": "pickscore: broken"}
    assert observer.failures == [
        *((0, [failed, {}]), (1, [{}, failed, {}])),
        *((4, [failed, {}]), (7, [failed, {}])),
    ]
    assert [m["groups/failed_rewards"] for _, m, _ in observer.steps] == [0, 1, 0, 0, 0, 0, 0]
    assert [metrics["groups/failed_rewards"] for metrics in observer.probed] == [1, 1, 1]
