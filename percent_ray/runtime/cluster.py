"""The three roles as Ray actors. The driver passes references on and never fetches a payload."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from percent_ray.data import arrow
from percent_ray.learn import older
from percent_ray.recipe import tree
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.runtime import placement
from percent_ray.runtime.learner_group import LearnerGroup
from percent_ray.runtime.pool import Pool
from percent_ray.slots import drawn_by
from percent_ray.types import (
    LearnerLost,
    Perception,
    Prompt,
    ShapedBatch,
    Trajectory,
    Update,
)


class RolloutActor(RolloutWorker):
    """Returns a group in parts, so that its tables stay in the object store."""

    def draw(self, *args: Any) -> tuple[Trajectory, Any, Any]:
        """`sample`: the trajectory without its tables, its payload, its condition."""
        group = self.sample(*args)
        return replace(group, payload=None, condition=None), group.payload, group.condition


class PerceptionActor(PerceptionWorker):
    """Takes a group in parts: Ray hands over what an argument refers to, not what is inside one."""

    def judge(self, group: Trajectory, payload: Any, *, pictures: bool) -> Perception:
        """`perceive` of a trajectory without its tables and its payload."""
        return self.perceive(replace(group, payload=payload), pictures=pictures)


def _pool(kind: type, recipe: Recipe, role: tree.Role, *, name: str) -> Pool:
    """The actors of one role. Every draw is a function of ids, so that a call that is made again
    gives what the first would have given."""
    actor = ray.remote(kind).options(
        **placement.options(role), max_restarts=-1, max_task_retries=-1
    )
    runtime = recipe.runtime
    return Pool(
        [actor.remote(recipe, worker=f"{name}-{i}") for i in range(role.workers)],
        name=name,
        inflight=runtime.inflight,
        timeout_s=runtime.timeout_s,
        setting="runtime.timeout_s",
    )


def _older(source: Path | None) -> dict[int, tuple[str | None, ray.ObjectRef | None]]:
    """The weights that a checkpoint holds of versions before its own, and the loaded ones."""
    held: dict[int, tuple[str | None, ray.ObjectRef | None]] = {0: (None, None)}
    for version, weights in older.read(source).items():
        held[version] = (arrow.checksum(arrow.unpack(weights)), ray.put(weights))
    return held


class Cluster:
    """`loop.Roles` on a Ray cluster. Build it with `start`."""

    def __init__(self, recipe: Recipe, *, run_folder: Path, resume: Path | None) -> None:
        runtime = recipe.runtime
        self.rollout = _pool(RolloutActor, recipe, runtime.rollout, name="rollout")
        self.perception = _pool(PerceptionActor, recipe, runtime.perception, name="perception")
        self.learner = LearnerGroup(recipe, run_folder=run_folder, resume=resume)
        self._recipe, self._run_folder = recipe, run_folder
        self._max_staleness = runtime.max_staleness
        self.loaded: list[str] = []
        """What was loaded, a line each."""
        self._weights = _older(resume)

    @classmethod
    async def start(
        cls, recipe: Recipe, *, first: Prompt, run_folder: Path, resume: Path | None
    ) -> "Cluster":
        """Start every actor, wait until each has loaded its models, try every scorer on the run's
        `first` prompt, and then start the learner group: it is not needed before the first batch,
        and a start that fails has none to end.

        Raises ValueError, in one line, where the cluster is too small, a model's folder is bad or a
        scorer broken.
        """
        placement.connect()
        placement.check(recipe, ray.cluster_resources())
        cluster = cls(recipe, run_folder=run_folder, resume=resume)
        try:
            async with asyncio.TaskGroup() as group:
                rollout = group.create_task(cluster.rollout.ready())
                perception = group.create_task(cluster._perception_ready(first))
            cluster.loaded = [*rollout.result()[0], *perception.result()]
            cluster.learner.start()
        except BaseException as error:
            await cluster.close()
            if not isinstance(error, BaseExceptionGroup):
                raise
            # Of its own cause, the remote traceback; not of the group.
            first_error = error.exceptions[0]
            raise first_error from first_error.__cause__
        return cluster

    async def _perception_ready(self, first: Prompt) -> list[str]:
        [lines, *_] = await self.perception.ready()
        await self.perception.call("try_out", first)
        return lines

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        checksum, weights = self._weights[version]
        try:
            group, payload, condition = await self.rollout.call(
                "draw", group_id, prompt, version, weights, checksum, returns=3
            )
        except ObjectLostError as error:
            raise LearnerLost(
                f"the weights of version {version} are gone with the learner that published them"
            ) from error
        return replace(group, payload=payload, condition=condition)

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        bare = replace(trajectory, payload=None, condition=None)
        [perception] = await self.perception.call(
            "judge", bare, trajectory.payload, pictures=pictures
        )
        return perception

    async def update(self, batch: ShapedBatch) -> Update:
        update, checksum, weights = await self.learner.order("update", batch=batch)
        assert update is not None
        self._remember(update.version, checksum, weights)
        return update

    async def publish(self, version: int) -> None:
        """An update brings its weights along. Version 0 is what every actor has loaded, so that
        sampling need not wait for the learner; a resumed run asks for its first one."""
        if version not in self._weights:
            _, checksum, weights = await self.learner.order("publish")
            self._remember(version, checksum, weights)

    def _remember(self, version: int, checksum: str, weights: ray.ObjectRef | None) -> None:
        """Weights stay at hand until every group that they have drawn is learned from: a payload
        that is lost with its machine has to be drawn again, also while the learner works. Step
        `version` is the next one, and consumes nothing older than the first version below."""
        self._weights[version] = (checksum, weights)
        first = version - self._max_staleness
        self._weights = {v: held for v, held in self._weights.items() if v >= first}

    async def restart(self, source: Path | None, version: int) -> None:
        """Another learner group in the place of one that is lost, at the `version` of a checkpoint
        or (None) before training. The actors of the other roles stay. Returns when it has loaded;
        raises LearnerLost where it dies, too."""
        self.learner.end()
        self._weights = _older(source)  # the others are lost with the rank that published them
        self.learner = LearnerGroup(self._recipe, run_folder=self._run_folder, resume=source)
        self.learner.start()
        _, checksum, weights = await self.learner.order("publish")
        self._remember(version, checksum, weights)

    async def save(self, folder: Path) -> None:
        await self.learner.order("save", folder=str(folder.absolute()))
        version, runtime = max(self._weights), self._recipe.runtime
        first = drawn_by(version, runtime.max_staleness, self._recipe.run.checkpoint_every)
        write = ray.remote(older.write).options(num_cpus=0, scheduling_strategy=placement.here())
        for before in range(max(first, 1), version):  # version 0 is what every actor has loaded
            await write.remote(folder.absolute(), before, self._weights[before][1])

    def queued(self) -> Mapping[str, int]:
        return {"rollout": self.rollout.waiting, "perception": self.perception.waiting}

    async def close(self) -> None:
        """End every actor, the learner's after what it was ordered."""
        await self.learner.close()
        self.rollout.close()
        self.perception.close()
