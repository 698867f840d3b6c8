"""Machines that die under a run, with their actors and with the trajectories in their object
stores: what was lost is drawn again, and no metric differs from an undisturbed run's."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Machines

from percent_ray import run as runs
from percent_ray.monitor import history
from percent_ray.recipe.tree import Recipe
from percent_ray.runtime.cluster import Cluster
from tests.end_to_end import world as worlds

CARD = {"num_cpus": 1, "num_gpus": 1}
"""A machine with a place for one that samples: there are no such cards, and nothing uses them."""
SAID = {
    "sampling": "rollout worker",
    "perceiving": "group 6 is lost with its machine, and is drawn again",
    "learning": "are lost with their machines, and are drawn again",
}

pytestmark = [pytest.mark.ray, pytest.mark.study]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """The driver's, with room for the learner alone, that soon knows who is dead; every result goes
    to an object store, as one of a real model's size would."""
    settings = {
        "max_direct_call_object_size": 0,
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 300,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 4, "num_gpus": 0, "_system_config": settings}
    cluster = Machines(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def recipe(world: Path, folder: Path, name: str) -> Recipe:
    """Two that sample, on a machine each; two learner ranks, which only fit the driver's."""
    fields = worlds.recipe(world, folder).model_dump()
    fields["run"] |= {"steps": 4, "name": name, "checkpoint_every": 100}
    fields["data"] |= {"groups_per_step": 4}
    fields["runtime"] |= {
        "rollout": {"workers": 2, "cpus": 0.2, "gpus": 1},
        "perception": {"workers": 1, "cpus": 0.2, "gpus": 0},
        "learner": {"workers": 2, "cpus": 1.5, "gpus": 0},
    }
    return Recipe.model_validate(fields)


def metrics(run: Path) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in values.items() if not name.startswith(worlds.CLOCKS)}
        for step, values in history.read(run / "metrics.jsonl").items()
    }


@pytest.fixture(scope="module")
def straight(world, machines, tmp_path_factory) -> Path:
    two = [machines.add_node(**CARD) for _ in range(2)]
    run = runs.train(recipe(world, tmp_path_factory.mktemp("straight"), "straight"))
    for node in two:
        machines.remove_node(node)
    return run


def machine_of(ref: ray.ObjectRef, nodes: list[Any]) -> Any:
    """The one whose object store holds it."""
    [place] = ray.experimental.get_object_locations([ref])[ref]["node_ids"]
    return next(node for node in nodes if node.node_id == place)


@pytest.mark.parametrize("when", ["sampling", "perceiving", "learning"])
def test_invariant_11_a_machine_that_dies_costs_no_number(
    straight, world, tmp_path, machines, monkeypatch, capsys, when
):
    """While one of two machines samples; while a group that lies on it is to be perceived; and
    while groups that lie on it are to be learned from. Another comes in its place."""
    nodes = [machines.add_node(**CARD) for _ in range(2)]
    removed: list[Any] = []

    def remove(node: Any) -> None:
        machines.remove_node(node, allow_graceful=False)
        removed.append(node)
        nodes.append(machines.add_node(**CARD))

    sample, perceive, update = Cluster._draw, Cluster.perceive, Cluster.update

    async def sampling(cluster: Cluster, group_id: int, **options: Any) -> Any:
        if when == "sampling" and group_id == 9 and not removed:
            remove(nodes[0])
        return await sample(cluster, group_id, **options)

    async def perceiving(cluster: Cluster, trajectory: Any, **options: Any) -> Any:
        if when == "perceiving" and trajectory.group_id == 6 and not removed:
            remove(machine_of(trajectory.payload, nodes))
        return await perceive(cluster, trajectory, **options)

    async def learning(cluster: Cluster, batch: Any) -> Any:
        if when == "learning" and batch.version == 1:
            # Of payloads the machine of who perceives has a copy; of conditions nobody has.
            remove(machine_of(batch.rows[0].condition, nodes))
        while batch.version == 3 and cluster.rollout.workers < 2:
            await asyncio.sleep(0.05)
        return await update(cluster, batch)

    monkeypatch.setattr(Cluster, "_draw", sampling)
    monkeypatch.setattr(Cluster, "perceive", perceiving)
    monkeypatch.setattr(Cluster, "update", learning)
    run = runs.train(recipe(world, tmp_path, when))
    for node in nodes:
        if node not in removed:
            machines.remove_node(node)
    assert len(removed) == 1
    assert len(metrics(straight)) == 5
    assert metrics(run) == metrics(straight)
    out = capsys.readouterr().out
    assert "is gone, and its groups are asked of another" in out
    assert SAID[when] in out
    assert "rollout worker 2 joins" in out
    sampled = [json.loads(line) for line in (run / "spans.jsonl").read_text().splitlines()]
    workers = {span["worker"] for span in sampled if span["stage"] == "sample"}
    assert {"rollout-0", "rollout-1"} <= workers
