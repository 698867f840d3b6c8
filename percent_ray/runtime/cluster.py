"""The three roles as Ray actors. The driver passes references on and never fetches a payload."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from percent_ray.recipe import tree
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.runtime import placement
from percent_ray.runtime.learner_group import LearnerGroup
from percent_ray.types import Perception, Prompt, ShapedBatch, Trajectory, Update


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


class Pool:
    """The actors of one role, each with at most `inflight` calls at a time.

    A call that its actor's death interrupts is made again by Ray on the restarted actor; every draw
    is a function of ids, so that the second result equals what the first would have been.
    """

    def __init__(self, kind: type, recipe: Recipe, role: tree.Role, *, name: str) -> None:
        actor = ray.remote(kind).options(
            **placement.options(role), max_restarts=-1, max_task_retries=-1
        )
        self.name = name
        self.actors: list[Any] = [
            actor.remote(recipe, worker=f"{name}-{i}") for i in range(role.workers)
        ]
        self.waiting = 0
        self._timeout_s = recipe.runtime.timeout_s
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for handle in self.actors * recipe.runtime.inflight:
            self._free.put_nowait(handle)

    async def ready(self) -> list[str]:
        """Every actor has loaded its models; what the first one says of them. One that dies while
        it loads would die again: that ends the start."""
        loading = [actor.ready.options(max_task_retries=0).remote() for actor in self.actors]
        lines = [await self._within(asyncio.wrap_future(ref.future())) for ref in loading]
        return lines[0]

    async def call(self, method: str, *args: Any, returns: int = 1, **kwargs: Any) -> list[Any]:
        """`method` on the next free actor: its first return value, then references to the rest."""
        self.waiting += 1
        try:
            actor = await self._free.get()
        finally:
            self.waiting -= 1
        try:
            bound = getattr(actor, method).options(num_returns=returns)
            refs = bound.remote(*args, **kwargs)
            first, *rest = refs if returns > 1 else [refs]
            return [await self._within(asyncio.wrap_future(first.future())), *rest]
        finally:
            self._free.put_nowait(actor)

    async def _within(self, work: Any) -> Any:
        try:
            return await asyncio.wait_for(work, self._timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"a {self.name} actor did not answer within {self._timeout_s:g} s; "
                "set runtime.timeout_s higher, or look at the actor's logs"
            ) from None
        except RayTaskError as error:
            # the actor's own exception; the remote traceback stays as its cause
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except RayActorError as error:
            raise ConnectionError(
                f"a {self.name} actor is gone and does not come back; look at its logs"
            ) from error

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


class Cluster:
    """`loop.Roles` on a Ray cluster. Build it with `start`."""

    def __init__(self, recipe: Recipe, *, run_folder: Path, resume: Path | None) -> None:
        runtime = recipe.runtime
        self.rollout = Pool(RolloutActor, recipe, runtime.rollout, name="rollout")
        self.perception = Pool(PerceptionActor, recipe, runtime.perception, name="perception")
        self.learner = LearnerGroup(recipe, run_folder=run_folder, resume=resume)
        self._max_staleness = runtime.max_staleness
        self.loaded: list[str] = []
        """What was loaded, a line each."""
        self._weights: dict[int, tuple[str | None, ray.ObjectRef | None]] = {}

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
            cluster.loaded = [*rollout.result(), *perception.result()]
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
        lines = await self.perception.ready()
        await self.perception.call("try_out", first)
        return lines

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        checksum, weights = self._weights[version]
        try:
            group, payload, condition = await self.rollout.call(
                "draw", group_id, prompt, version, weights, checksum, returns=3
            )
        except ObjectLostError as error:
            raise ConnectionError(
                f"the weights of version {version} are gone with the learner that published them; "
                "look at its logs"
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
        if version == 0:
            self._weights[0] = (None, None)
        elif version not in self._weights:
            _, checksum, weights = await self.learner.order("publish")
            self._remember(version, checksum, weights)

    def _remember(self, version: int, checksum: str, weights: ray.ObjectRef | None) -> None:
        """Weights stay at hand until every group that they have drawn is learned from: a payload
        that is lost with its machine has to be drawn again, also while the learner works. Step
        `version` is the next one, and consumes nothing older than the first version below."""
        self._weights[version] = (checksum, weights)
        first = version - self._max_staleness
        self._weights = {v: held for v, held in self._weights.items() if v >= first}

    async def save(self, folder: Path) -> None:
        await self.learner.order("save", folder=str(folder.absolute()))

    def queued(self) -> Mapping[str, int]:
        return {"rollout": self.rollout.waiting, "perception": self.perception.waiting}

    async def close(self) -> None:
        """End every actor, the learner's after what it was ordered."""
        await self.learner.close()
        self.rollout.close()
        self.perception.close()
