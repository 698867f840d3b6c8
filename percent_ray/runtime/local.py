"""The three roles in one process, without Ray: for tests, debuggers and single-GPU users.

Rollout and learner share one set of weights, so sampling under version v is over before version
v + 1 exists, but in a run that was resumed between two barriers: there the weights of the versions
before are taken for a while. One thread makes every call, in the order in which they are asked for,
so that the event loop is free and a call that hangs can be given up.
"""

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa

from percent_ray.data import arrow
from percent_ray.learn import older
from percent_ray.learn.engine import TorchEngine
from percent_ray.models.base import best_device, family
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.types import Perception, Prompt, ShapedBatch, Trajectory, Update

CLOSE_S = 30.0
"""Longest wait for a call that nobody needs any more."""


class Local:
    """`loop.Roles` in this process. Build it with `start`; every call raises TimeoutError where it
    takes longer than `runtime.timeout_s`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._thread = Thread(recipe.runtime.timeout_s)

    @classmethod
    async def start(cls, recipe: Recipe, *, first: Prompt, resume: Path | None = None) -> "Local":
        """Load everything and try every scorer on the run's `first` prompt. Raises ValueError, in
        one line, for a bad folder and a broken scorer."""
        local = cls(recipe)
        try:
            await local._thread.call("loading the models", lambda: local._load(first, resume))
        except BaseException:
            await local.close()
            raise
        return local

    def _load(self, first: Prompt, resume: Path | None) -> None:
        recipe = self.recipe
        self.policy = family(recipe.model.family).load_policy(
            recipe.model, seed=recipe.run.seed, device=best_device(), text=True
        )
        self.engine = TorchEngine(recipe.learner, self.policy)
        self.learner = Learner(recipe, self.policy, self.engine)
        self._older: dict[int, pa.Table | None] = {}
        """Weights of the versions before the learner's that may be behind groups in flight."""
        if resume is not None:
            self._older = {0: self.learner.publish()[0], **older.read(resume)}
            self.learner.load(resume)
        self.rollout = RolloutWorker(recipe, worker="local", policy=self.policy)
        self.perception = PerceptionWorker(recipe, worker="local")
        self.loaded = [*self.rollout.ready(), *self.perception.ready()]
        self.perception.try_out(first)

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        def draw() -> Trajectory:
            with self._drawing(version):
                return self.rollout.sample(group_id, prompt, version)

        return await self._thread.call(f"sampling group {group_id}", draw)

    def _drawing(self, version: int) -> AbstractContextManager[None]:
        """Inside, the policy is the one that draws under a version."""
        if version == self.learner.version:
            return self.learner.drawing()
        weights = arrow.unpack(self._older[version])
        return self.engine.holding({n: w.to(self.engine.device) for n, w in weights.items()})

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        return await self._thread.call(
            f"perceiving group {trajectory.group_id}",
            lambda: self.perception.perceive(trajectory, pictures=pictures),
        )

    async def update(self, batch: ShapedBatch) -> Update:
        return await self._thread.call(
            f"the update of step {batch.version}", lambda: self._update(batch)
        )

    def _update(self, batch: ShapedBatch) -> Update:
        staleness = self.recipe.runtime.max_staleness
        if staleness:
            self._older[self.learner.version], _ = self.learner.publish()
        update = self.learner.update(batch)
        self._older = {v: w for v, w in self._older.items() if v >= update.version - staleness}
        return update

    async def publish(self, version: int) -> None:
        assert version == self.learner.version

    async def save(self, folder: Path, oldest: int) -> None:
        await self._thread.call("writing a checkpoint", lambda: self._save(folder, oldest))

    def _save(self, folder: Path, oldest: int) -> None:
        self.learner.save(folder)
        for before in range(oldest, self.learner.version):
            older.write(folder, before, self._older[before])

    def queued(self) -> Mapping[str, int]:
        return {"rollout": 0, "perception": 0}

    async def close(self) -> None:
        """End the thread; nothing else outlives the call."""
        await self._thread.close()


class Thread:
    """Makes calls one after the other, in the order in which they are asked for. A call that is not
    over after `timeout_s` seconds of its own is given up: its caller gets a TimeoutError, and the
    process may end without it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._hangs = False
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        # The thread knows the queue alone: it must not hold the models of whoever has dropped them.
        self._thread = threading.Thread(
            target=_work, args=(self._calls,), name="roles", daemon=True
        )
        self._thread.start()
        self._end = weakref.finalize(self, self._calls.put, None)

    async def close(self) -> None:
        """End the thread behind the call that it is in. Waits for that, unless the call hangs: a
        process that ends with a thread inside torch may be aborted."""
        self._end()
        if not self._hangs:
            await asyncio.to_thread(self._thread.join, CLOSE_S)

    async def call(self, what: str, function: Callable[[], Any]) -> Any:
        """The result of `function()`, which the thread calls when its turn comes."""
        call = _Call(function)
        self._calls.put(call)
        await asyncio.wrap_future(call.begun)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(call.done), self._timeout_s)
        except TimeoutError:
            raise self._late(what, call) from None

    def _late(self, what: str, call: "_Call") -> BaseException:
        self._hangs = not call.done.done()
        own = call.done.exception() if call.done.done() else None
        return own or TimeoutError(
            f"{what} was not over in {self._timeout_s:g} s; set runtime.timeout_s higher, or look "
            "at what it waits for"
        )


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.begun: Future[None] = Future()
        """Cancelled with whoever waits for it, before its turn has come."""
        self.done: Future[Any] = Future()


def _work(calls: "queue.SimpleQueue[_Call | None]") -> None:
    while (call := calls.get()) is not None:
        if not call.begun.set_running_or_notify_cancel():
            continue
        call.done.set_running_or_notify_cancel()
        call.begun.set_result(None)
        try:
            call.done.set_result(call.function())
        except BaseException as error:
            call.done.set_exception(error)
        del call
