"""How often a lost learner group is built again, and from where."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from percent_ray import recover
from percent_ray.learn import checkpoint
from percent_ray.loop import Progress
from percent_ray.types import LearnerLost
from tests.end_to_end import world as worlds


@dataclass
class FakeLoop:
    """Goes one step, with a checkpoint where asked, and is lost; ends when nothing is left."""

    run_folder: Path
    recipe: object
    events: list[str]
    progress: Progress
    stopping: bool = False

    async def run(self) -> Progress:
        if not self.events:
            return Progress(99)
        event = self.events.pop(0)
        if event == "stop":
            self.stopping = True
        if event == "checkpoint":
            step = self.progress.version + 2
            with checkpoint.writing(self.run_folder, step, keep=9) as aside:
                state = checkpoint.DriverState(step, {"strength": 0.5}, None, step)
                checkpoint.write_state(aside, state, self.recipe)
        raise LearnerLost(f"lost at {event}")


@dataclass
class FakeRoles:
    failing: list[bool] = field(default_factory=list)
    restarted: list[tuple[str | None, int]] = field(default_factory=list)

    async def restart(self, source: Path | None, version: int) -> None:
        self.restarted.append((source.name if source else None, version))
        if self.failing and self.failing.pop(0):
            raise LearnerLost("lost while it loads")


def go(world, tmp_path, events, roles, most=3):
    recipe = worlds.recipe(world, tmp_path, backend="local")
    runtime = recipe.runtime.model_copy(update={"max_failures": most})
    recipe = recipe.model_copy(update={"runtime": runtime})
    said, began = [], []

    def begin(progress):
        began.append((progress.version, dict(progress.shape_state)))
        return FakeLoop(tmp_path, recipe, events, progress)

    done = recover.run(begin, Progress(), roles, recipe=recipe, folder=tmp_path, say=said.append)
    try:
        return asyncio.run(done), said, began
    except LearnerLost as error:
        return str(error), said, began


def test_it_goes_on_from_the_newest_checkpoint_with_the_method_s_state(world, tmp_path):
    roles = FakeRoles()
    end, said, began = go(world, tmp_path, ["sampling", "checkpoint", "update"], roles)
    assert end.version == 99
    assert roles.restarted == [(None, 0), ("step-00000002", 2), ("step-00000002", 2)]
    assert began == [(0, {}), (0, {}), (2, {"strength": 0.5}), (2, {"strength": 0.5})]
    again = "the learner group is being built again from"
    assert said[::2] == [
        f"lost at sampling; {again} the model before training "
        "(failure 1 of 3 until the next checkpoint)",
        f"lost at checkpoint; {again} step-00000002 (failure 1 of 3 until the next checkpoint)",
        f"lost at update; {again} step-00000002 (failure 2 of 3 until the next checkpoint)",
    ], "a checkpoint counts anew"
    assert all(" s and goes on from " in line for line in said[1::2])


@pytest.mark.parametrize("most", [0, 2])
def test_it_gives_up_after_so_many_failures_without_a_checkpoint(world, tmp_path, most):
    roles = FakeRoles()
    end, said, _ = go(world, tmp_path, ["update"] * 9, roles, most)
    assert 2 * len(roles.restarted) == len(said) == 2 * most
    assert end == (
        "lost at update; the learner group is not built again from the model before training: "
        f"runtime.max_failures is {most}"
    )


def test_a_group_that_is_lost_while_it_loads_counts(world, tmp_path):
    roles = FakeRoles(failing=[True, True, False])
    end, said, began = go(world, tmp_path, ["update"], roles)
    assert end.version == 99
    assert (len(roles.restarted), len(began)) == (3, 2)
    assert [line.partition(";")[0] for line in said[:3]] == [
        "lost at update",
        "lost while it loads",
        "lost while it loads",
    ]
    assert "failure 3 of 3" in said[2]
    assert said[3].endswith("goes on from the model before training")


def test_the_first_cause_is_not_lost_behind_those_that_follow(world, tmp_path):
    end, _, _ = go(world, tmp_path, ["update"], FakeRoles(failing=[True] * 9), 2)
    assert end.startswith("lost while it loads (at first: lost at update); the learner group is")


def test_a_run_that_is_to_stop_is_not_built_again(world, tmp_path):
    roles = FakeRoles()
    end, said, _ = go(world, tmp_path, ["stop"], roles)
    assert "the run was to stop" in end
    assert not roles.restarted
    assert not said
