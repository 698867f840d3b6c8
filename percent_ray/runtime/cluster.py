"""The three roles as Ray actors. The driver passes references on and never fetches a payload."""

import asyncio
import time
from collections.abc import Callable, Mapping
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
from percent_ray.runtime import connection, control, placement, places
from percent_ray.runtime.learner_group import LearnerGroup
from percent_ray.runtime.pool import Pool
from percent_ray.runtime.rank import Lost
from percent_ray.runtime.scaling import Scaler, Watched
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


LOSSES = 3
"""How often in a row what was drawn may be lost with its machine, and is drawn again."""

Say = Callable[[str], None]


def _pool(kind: type, recipe: Recipe, role: tree.Role, *, name: str, say: Say) -> Pool:
    """The actors of one role."""
    actor = ray.remote(kind).options(**placement.options(role))
    runtime = recipe.runtime
    return Pool(
        lambda number: actor.remote(recipe, worker=f"{name}-{number}"),
        role.workers,
        name=name,
        inflight=runtime.inflight,
        timeout_s=runtime.timeout_s,
        setting="runtime.timeout_s",
        say=say,
    )


def _older(source: Path | None) -> dict[int, tuple[str | None, ray.ObjectRef | None]]:
    """The weights that a checkpoint holds of versions before its own, and the loaded ones."""
    held: dict[int, tuple[str | None, ray.ObjectRef | None]] = {0: (None, None)}
    for version, weights in older.read(source).items():
        held[version] = (arrow.checksum(arrow.unpack(weights)), ray.put(weights))
    return held


class Cluster:
    """`loop.Roles` on a Ray cluster. Build it with `start`."""

    def __init__(
        self, recipe: Recipe, *, run_folder: Path, resume: Path | None, say: Say = lambda line: None
    ) -> None:
        runtime = recipe.runtime
        self.rollout = _pool(RolloutActor, recipe, runtime.rollout, name="rollout", say=say)
        self.perception = _pool(
            PerceptionActor, recipe, runtime.perception, name="perception", say=say
        )
        self._pools = {"rollout": self.rollout, "perception": self.perception}
        self._say = say
        self.learner = LearnerGroup(recipe, run_folder=run_folder, resume=resume)
        self._recipe, self._run_folder = recipe, run_folder
        self._max_staleness = runtime.max_staleness
        self.loaded: list[str] = []
        """What was loaded, a line each."""
        self._weights = _older(resume)
        self._drawn: dict[int, tuple[Prompt, int]] = {}
        """Prompt and version of every group that is on its way."""
        self._redrawn: dict[int, tuple[ray.ObjectRef, ray.ObjectRef]] = {}
        """Payload and condition of those that were lost and drawn again."""
        self._version = 0
        self._control: asyncio.Task[None] | None = None
        self._own = False
        """Whether Ray was started for this run, and ends with it."""
        self._scaler = Scaler(
            self._watched(),
            room=lambda need: places.room(places.free(), need),
            ask=self._request,
            say=say,
        )

    @classmethod
    async def start(
        cls,
        recipe: Recipe,
        *,
        first: Prompt,
        run_folder: Path,
        resume: Path | None,
        say: Say = lambda line: None,
    ) -> "Cluster":
        """Start every actor, wait until each has loaded its models, try every scorer on the run's
        `first` prompt, and then start the learner group: it is not needed before the first batch,
        and a start that fails has none to end. `say` gets a line for what then happens to an actor.

        Raises ValueError, in one line, where the cluster is too small, a model's folder is bad or a
        scorer broken.
        """
        own = connection.connect()
        await placement.wait(recipe, say=say)
        control.write_address(run_folder)
        cluster = cls(recipe, run_folder=run_folder, resume=resume, say=say)
        cluster._own = own
        try:
            async with asyncio.TaskGroup() as group:
                rollout = group.create_task(cluster.rollout.ready())
                perception = group.create_task(cluster._perception_ready(first))
            cluster.loaded = [*rollout.result()[0], *perception.result()]
            await placement.wait(recipe, roles=["learner"], say=say)
            cluster.learner.start()
            cluster._control = asyncio.create_task(
                control.obey(run_folder, cluster.state, cluster.resize, say)
            )
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
        self._drawn[group_id] = prompt, version
        return await self._draw(group_id)

    async def _draw(self, group_id: int, *, again: bool = False) -> Trajectory:
        """A group that `sample` was asked for, by the version of that time: its weights are kept
        until it is learned from."""
        prompt, version = self._drawn[group_id]
        checksum, weights = self._weights[version]
        try:
            group, payload, condition = await self.rollout.call(
                "draw", group_id, prompt, version, weights, checksum, returns=3, urgent=again
            )
        except ObjectLostError as error:
            raise LearnerLost(
                f"the weights of version {version} are gone with the learner that published them"
            ) from error
        if again:
            self._redrawn[group_id] = payload, condition
        return replace(group, payload=payload, condition=condition)

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        """A payload that is lost with its machine is drawn again."""
        bare = replace(trajectory, payload=None, condition=None)
        payload = trajectory.payload
        for last in (*(False,) * LOSSES, True):
            try:
                [perception] = await self.perception.call("judge", bare, payload, pictures=pictures)
                return perception
            except ObjectLostError:
                if last:
                    raise
            self._say(f"group {bare.group_id} is lost with its machine, and is drawn again")
            payload = (await self._draw(bare.group_id, again=True)).payload
        raise AssertionError("returned or raised")

    async def update(self, batch: ShapedBatch) -> Update:
        """What a rank cannot fetch of the batch is drawn again before any rank learns of it."""
        self._scaler.began()
        for _ in range(LOSSES + 1):
            update, checksum, weights = await self.learner.order(
                "update", batch=self._newest(batch)
            )
            if not isinstance(update, Lost):
                break
            numbers = ", ".join(map(str, update.groups))
            self._say(f"groups {numbers} are lost with their machines, and are drawn again")
            await asyncio.gather(*(self._draw(group, again=True) for group in update.groups))
        else:
            raise ConnectionError(
                f"groups of step {batch.version} were lost {LOSSES + 1} times, one after the other"
            )
        assert update is not None
        self._remember(update.version, checksum, weights)
        return replace(update, metrics={**update.metrics, **self._scaler.ended()})

    def _newest(self, batch: ShapedBatch) -> ShapedBatch:
        """With the tables of those groups that were drawn again."""
        rows = list(batch.rows)
        for number, row in enumerate(rows):
            if row.group_id in self._redrawn:
                payload, condition = self._redrawn[row.group_id]
                rows[number] = replace(row, payload=payload, condition=condition)
        return replace(batch, rows=tuple(rows))

    async def publish(self, version: int) -> None:
        """An update brings its weights along. Version 0 is what every actor has loaded, so that
        sampling need not wait for the learner; a resumed run asks for its first one."""
        if version not in self._weights:
            _, checksum, weights = await self.learner.order("publish")
            self._remember(version, checksum, weights)

    def _watched(self) -> dict[str, Watched]:
        """The pools that scale themselves: to no more workers than there are groups for."""
        runtime, groups = self._recipe.runtime, self._recipe.groups_in_flight
        roles = {name: getattr(runtime, name) for name in self._pools}
        return {
            name: Watched(
                self._pools[name],
                least=role.workers,
                most=max(role.workers, min(role.max_workers, groups)),
                need=placement.need(role),
            )
            for name, role in roles.items()
            if role.max_workers
        }

    def _request(self, sizes: Mapping[str, int]) -> None:
        """Machines for pools of these sizes, and for the rest of the run as it is."""
        runtime = self._recipe.runtime
        wanted = {"learner": runtime.learner.workers}
        wanted |= {name: pool.wanted for name, pool in self._pools.items()} | dict(sizes)
        places.request((placement.need(getattr(runtime, name)), n) for name, n in wanted.items())

    def resize(self, role: str, workers: int) -> None:
        """As many workers of a role from now on, while the run goes on."""
        pool = self._pools[role]
        self._scaler.by_hand(role)
        if workers != pool.wanted:
            self._say(f"{role}: {pool.wanted} -> {workers} workers, as asked")
            pool.resize(workers)

    def state(self) -> control.State:
        sizes = {
            name: control.Size(
                pool.workers, pool.wanted, placement.need(getattr(self._recipe.runtime, name))
            )
            for name, pool in self._pools.items()
        }
        return control.State(self._version, sizes)

    def _remember(self, version: int, checksum: str, weights: ray.ObjectRef | None) -> None:
        """Weights stay at hand until every group that they have drawn is learned from: a payload
        that is lost with its machine has to be drawn again, also while the learner works. Step
        `version` is the next one, and consumes nothing older than the first version below."""
        self._weights[version] = (checksum, weights)
        self._version = version
        first = version - self._max_staleness
        self._weights = {v: held for v, held in self._weights.items() if v >= first}
        learned = range(version * self._recipe.data.groups_per_step)
        old = [g for g, (_, by) in self._drawn.items() if g in learned or by < first]
        for group_id in old:
            del self._drawn[group_id]
            self._redrawn.pop(group_id, None)

    async def restart(self, source: Path | None, version: int) -> None:
        """Another learner group in the place of one that is lost, at the `version` of a checkpoint
        or (None) before training. The actors of the other roles stay. Returns when it has loaded;
        raises LearnerLost where it dies, too."""
        start = time.monotonic()
        self.learner.end()
        self._weights = _older(source)  # the others are lost with the rank that published them
        self._drawn.clear()
        self._redrawn.clear()
        if line := placement.lacking(self._recipe, placement.machines(), free=False):
            self._say(f"{line}; waiting up to {self._recipe.runtime.timeout_s:g} s for a machine")
        self.learner = LearnerGroup(self._recipe, run_folder=self._run_folder, resume=source)
        self.learner.start()
        _, checksum, weights = await self.learner.order("publish")
        self._remember(version, checksum, weights)
        self._scaler.away(time.monotonic() - start)

    async def save(self, folder: Path, oldest: int) -> None:
        start = time.monotonic()
        await self.learner.order("save", folder=str(folder.absolute()))
        write = ray.remote(older.write).options(num_cpus=0, scheduling_strategy=placement.here())
        for before in range(
            max(oldest, 1), max(self._weights)
        ):  # version 0 is what every actor has loaded
            await write.remote(folder.absolute(), before, self._weights[before][1])
        self._scaler.away(time.monotonic() - start)

    def queued(self) -> Mapping[str, int]:
        return {"rollout": self.rollout.waiting, "perception": self.perception.waiting}

    async def close(self) -> None:
        """End every actor, the learner's after what it was ordered."""
        if self._control is not None:
            self._control.cancel()
            await asyncio.gather(self._control, return_exceptions=True)
        await self.learner.close()
        self.rollout.close()
        self.perception.close()
        if self._watched():
            places.request([])
        if self._own:
            connection.leave()
