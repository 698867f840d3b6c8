"""Every way in which the learner group can be lost, in whole runs of two ranks: the group is built
again from the last checkpoint, and no metric and no weight differs from an undisturbed run's."""

import functools
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from safetensors.torch import load_file

from percent_ray import run as runs
from percent_ray.monitor import history
from percent_ray.recipe.tree import Recipe
from percent_ray.runtime.learner_group import LearnerGroup
from tests.end_to_end import world as worlds

STEPS = 5
"""With a checkpoint every 2: step 4 of them is behind the second."""


class Loss(NamedTuple):
    """Who is struck behind which step, and what the terminal then says of it and of the source that
    the run goes on from."""

    place: int
    who: str
    number: signal.Signals
    said: str
    source: str


BASE, SECOND, FOURTH = "the model before training", "step-00000002", "step-00000004"
LATE = "the learner group did not finish 'save' in 8 s"
HANG = Loss(1, "ray::RayTrain", signal.SIGSTOP, LATE, BASE)
CONTROLLER = Loss(2, "ray::TrainController", signal.SIGKILL, "Ray Train's controller died", SECOND)
RANK = Loss(3, "ray::RayTrain", signal.SIGKILL, "learner rank ", SECOND)
MAILBOX = Loss(4, "ray::Mailbox", signal.SIGKILL, "the learner group's mailbox died", FOURTH)


def recipe(world: Path, folder: Path, name: str, stage: int) -> Recipe:
    fields = worlds.recipe(world, folder).model_dump()
    fields["run"] |= {"steps": STEPS, "name": name}
    fields["learner"] |= {"zero_stage": stage}
    fields["runtime"] |= {"learner": {"cpus": 0.3, "gpus": 0, "workers": 2}}
    return Recipe.model_validate(fields)


def metrics(run: Path) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in values.items() if not name.startswith(worlds.CLOCKS)}
        for step, values in history.read(run / "metrics.jsonl").items()
    }


def processes(name: str) -> list[psutil.Process]:
    """Of the cluster that these tests have started, and of no other on the machine."""
    ours = psutil.Process().children(recursive=True)
    return [p for p in ours if p.is_running() and p.name().startswith(name)]


def strike(loss: Loss) -> None:
    """The youngest process of that name: of the ranks it is any one of them."""
    *_, victim = sorted(processes(loss.who), key=lambda p: p.create_time())
    os.kill(victim.pid, loss.number)


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory, ray_cluster):
    """The undisturbed run of a ZeRO stage."""
    folder = tmp_path_factory.mktemp("straight")
    return functools.cache(
        lambda stage: runs.train(recipe(world, folder, f"straight-{stage}", stage))
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "losses"),
    [
        (2, (RANK,)),
        pytest.param(1, (HANG, CONTROLLER, RANK, MAILBOX), marks=pytest.mark.study),
        pytest.param(2, (HANG, CONTROLLER, MAILBOX), marks=pytest.mark.study),
    ],
)
def test_invariant_11_a_lost_learner_group_comes_back(
    straight, world, tmp_path, capsys, monkeypatch, stage, losses
):
    """Each loss behind a step whose record is written, and the checkpoint before it."""
    record, order, struck = runs.Journal.step, LearnerGroup.order, []
    left = {loss.place: loss for loss in losses}

    def step(journal: runs.Journal, place: int, *rest: Any) -> None:
        record(journal, place, *rest)
        if loss := left.pop(place, None):
            struck.append(loss)
            strike(loss)

    async def impatient(group: LearnerGroup, kind: Any, **options: Any) -> Any:
        """A hang is waited for as long as `runtime.timeout_s`; here not so long, once."""
        if struck == [HANG]:
            struck.append("waited for")
            options["timeout_s"] = 8
        return await order(group, kind, **options)

    monkeypatch.setattr(runs.Journal, "step", step)
    monkeypatch.setattr(LearnerGroup, "order", impatient)
    run = runs.train(recipe(world, tmp_path, "struck", stage))
    out = capsys.readouterr().out
    assert not left
    assert out.count("the learner group was built again in") == len(losses)
    lines = [line for line in out.splitlines() if "the learner group is being built again" in line]
    for place, (loss, line) in enumerate(zip(losses, lines, strict=True)):
        count = [before.source for before in losses[: place + 1]].count(loss.source)
        assert loss.said in line
        assert f"again from {loss.source} (failure {count} of 3 until the next checkpoint)" in line
    assert metrics(run) == metrics(straight(stage))
    weights = f"checkpoints/step-{STEPS:08d}/policy/pytorch_lora_weights.safetensors"
    ours, theirs = load_file(run / weights), load_file(straight(stage) / weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
