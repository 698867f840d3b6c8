"""Actors that do one thing, and whoever of them is free; their number may change at any time.

A worker joins when it has loaded, and leaves when it has answered what it was asked: a call is made
on one worker, to its end. A worker that dies takes no call with it, since every draw is a function
of ids: the call is made again on another one, and the place of the dead one is filled. One that
hangs is ended, and its place is filled, too; its call fails.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from percent_ray.recipe.errors import first_line
from percent_ray.runtime import logs

DEATHS = 3
"""Workers that one call, or one place, may lose: what ends them all would end the next one too."""

GONE = (RayActorError, NodeDiedError, OutOfMemoryError)
"""What a call raises whose worker has died, or was ended for the memory that it took."""


class Hung(TimeoutError):
    """A worker has not answered in time, and is ended."""


Start = Callable[[int], Any]
"""Starts worker number i; returns the actor's handle."""


@dataclass(eq=False, slots=True)
class Worker:
    """One actor."""

    number: int
    handle: Any
    state: Literal["loading", "working", "leaving"]
    calls: int = 0
    """Under way."""


class Pool:
    """`workers` Ray actors of `start`, each with at most `inflight` calls at a time.

    Those of the beginning take calls at once; whoever comes later does so when its `ready` has
    answered. `setting` names what a user sets for longer waits, `say` gets a line for whatever
    happens to a worker, and `kill` ends an actor. Actors must not be restarted by Ray.
    """

    def __init__(
        self,
        start: Start,
        workers: int,
        *,
        name: str,
        inflight: int,
        timeout_s: float,
        setting: str,
        say: Callable[[str], None] = lambda line: None,
        kill: Callable[[Any], None] = ray.kill,
    ) -> None:
        self.name = name
        self.say = say
        self.wanted = workers
        self._start, self._kill = start, kill
        self._inflight, self._timeout_s, self._setting = inflight, timeout_s, setting
        self._started = 0
        self._workers = [self._add("working") for _ in range(workers)]
        self._ready: tuple[Any, ...] | None = None
        """Arguments of `ready`; None where workers need not load."""
        self._queue: deque[asyncio.Future[Worker]] = deque()
        self._loads: dict[Worker, asyncio.Task[None]] = {}
        self._busy_s, self._counted = 0.0, time.monotonic()

    @property
    def waiting(self) -> int:
        """Calls that no worker has taken yet."""
        return sum(not turn.done() for turn in self._queue)

    @property
    def workers(self) -> int:
        """Those that take calls."""
        return sum(worker.state == "working" for worker in self._workers)

    @property
    def loading(self) -> int:
        """Those that will."""
        return sum(worker.state == "loading" for worker in self._workers)

    def busy_s(self) -> float:
        """Seconds in which a worker had a call, summed over workers, from the beginning to now."""
        now = time.monotonic()
        self._busy_s += (now - self._counted) * sum(w.calls > 0 for w in self._workers)
        self._counted = now
        return self._busy_s

    async def ready(self, *args: Any) -> list[Any]:
        """Every worker has loaded its models; what each says of them. One that dies while it loads
        would die again: that ends the start."""
        self._ready = args
        loading = [worker.handle.ready.remote(*args) for worker in self._workers]
        try:
            return [await self._within(asyncio.wrap_future(ref.future())) for ref in loading]
        except GONE as error:
            raise self._gone("died while it loaded", error) from error

    async def call(
        self, method: str, *args: Any, returns: int = 1, urgent: bool = False, **kwargs: Any
    ) -> list[Any]:
        """`method` on the next free worker, an `urgent` call before all others: its first return
        value, then references to the rest.

        Raises what the method raises; ObjectLostError where an argument is lost; ConnectionError
        where worker after worker dies of it or none is left, and Hung where one does not answer.
        """
        deaths = 0
        arguments = {ref.hex() for ref in args if isinstance(ref, ray.ObjectRef)}
        while True:
            worker = await self._take(urgent)
            try:
                bound = getattr(worker.handle, method).options(num_returns=returns)
                refs = bound.remote(*args, **kwargs)
                first, *rest = refs if returns > 1 else [refs]
                return [await self._within(asyncio.wrap_future(first.future())), *rest]
            except GONE as error:
                self._lose(worker, error)
                deaths += 1
                if deaths == DEATHS:
                    what = f"{method!r} has ended {deaths} of them, one after the other"
                    raise self._gone(what, error) from error
                urgent = True
            except Hung:
                self._replace(worker)
                raise
            except ObjectLostError as error:
                deaths += 1
                if error.object_ref_hex in arguments or deaths == DEATHS:
                    raise
                urgent = True  # the answer is lost with its machine
            finally:
                self._release(worker)

    def resize(self, workers: int) -> None:
        """From now on `workers` actors. New ones load in the background, and join; of those that
        are too many the last go first, each when it has answered. A load that fails is said."""
        assert workers > 0, workers
        self.wanted = workers
        for worker in self._workers:  # who was to leave, and has not yet, stays
            if worker.state == "leaving" and self._staying() < workers:
                worker.state = "working"
        while self._staying() < workers:
            self._fill()
        surplus = [w for w in self._workers if w.state == "loading"][::-1]
        idle = sorted((w for w in self._workers if w.state == "working"), key=_last_idle)
        for worker in [*surplus, *idle][: self._staying() - workers]:
            self._leave(worker)
        self._give()

    def close(self) -> None:
        """End every worker at once."""
        for task in self._loads.values():
            task.cancel()
        for worker in self._workers:
            self._kill(worker.handle)
        self._workers.clear()

    def _staying(self) -> int:
        return self.workers + self.loading

    def _add(self, state: Literal["loading", "working"]) -> Worker:
        self._started += 1
        return Worker(self._started - 1, self._start(self._started - 1), state)

    def _fill(self) -> None:
        """A new worker, that joins when it has loaded."""
        self.busy_s()
        worker = self._add("working" if self._ready is None else "loading")
        self._workers.append(worker)
        if worker.state == "loading":
            self._loads[worker] = asyncio.create_task(self._load(worker))
            self._loads[worker].add_done_callback(lambda _: self._loads.pop(worker, None))

    async def _load(self, worker: Worker) -> None:
        """Until it has loaded, however long its machine takes to come. One that dies is followed by
        another, DEATHS times."""
        assert self._ready is not None
        for deaths in range(1, DEATHS + 1):
            try:
                await self._patiently(worker)
            except GONE as error:
                if deaths < DEATHS:
                    self._kill(worker.handle)
                    worker.handle = self._start(worker.number)
                    continue
                self._not_loaded(worker, f"it died {deaths} times: {_cause(error)}")
            except Exception as error:  # of a model's loader, whatever it is
                self._not_loaded(worker, first_line(error))
            else:
                worker.state = "working"
                self.say(f"{self.name} worker {worker.number} joins: {self.workers} of them")
                self._give()
            return

    async def _patiently(self, worker: Worker) -> None:
        work = asyncio.ensure_future(
            asyncio.wrap_future(worker.handle.ready.remote(*self._ready or ()).future())
        )
        # Marks an error as retrieved: who was to load may be let go before.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        while not (await asyncio.wait({work}, timeout=self._timeout_s))[0]:
            why = (
                f"{self.name} worker {worker.number} has not loaded within {self._timeout_s:g} s: "
                "the cluster has no place for it, or it hangs"
            )
            self.say(why)
            if not self.workers:
                self._fail(TimeoutError(f"{why}; no other is left"))
        await self._within(work)

    def _not_loaded(self, worker: Worker, why: str) -> None:
        self._loads.pop(worker, None)
        self._leave(worker)
        self.wanted = self._staying()
        self.say(f"{self.name} worker {worker.number} did not load, and is left out: {why}")
        if not self.wanted:
            self._fail(ConnectionError(f"no {self.name} actor is left; the last: {why}"))

    def _lose(self, worker: Worker, error: RayError) -> None:
        """A dead worker's place is filled, once, whoever of its callers is told first."""
        if self._replace(worker):
            self.say(
                f"{self.name} worker {worker.number} is gone, and its groups are asked of another: "
                f"{_cause(error)}"
            )

    def _replace(self, worker: Worker) -> bool:
        """End a worker and fill its place; False where that is done already."""
        if worker not in self._workers:
            return False
        self.busy_s()
        self._workers.remove(worker)
        self._kill(worker.handle)  # it may hang, or only be out of reach
        if worker.state != "leaving":
            self._fill()
        return True

    def _leave(self, worker: Worker) -> None:
        """Out of the pool: now where nothing is asked of it, else when it has answered."""
        if worker.calls:
            worker.state = "leaving"
            return
        self.busy_s()
        if task := self._loads.pop(worker, None):
            task.cancel()
        self._workers.remove(worker)
        self._kill(worker.handle)

    async def _take(self, urgent: bool) -> Worker:
        """The next free worker, in the order of the calls."""
        if not self._staying():
            raise ConnectionError(f"no {self.name} actor is left")
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        (self._queue.appendleft if urgent else self._queue.append)(turn)
        self._give()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _give(self) -> None:
        """Free workers to those who wait."""
        while self._queue:
            if self._queue[0].done():  # nobody waits any more
                self._queue.popleft()
                continue
            able = [w for w in self._workers if w.state == "working" and w.calls < self._inflight]
            if not able:
                return
            worker = min(able, key=lambda w: w.calls)
            self.busy_s()
            worker.calls += 1
            self._queue.popleft().set_result(worker)

    def _release(self, worker: Worker) -> None:
        self.busy_s()
        worker.calls -= 1
        if worker.state == "leaving" and worker in self._workers:
            self._leave(worker)
        self._give()

    def _fail(self, error: Exception) -> None:
        """Of everybody who waits."""
        for turn in self._queue:
            if not turn.done():
                turn.set_exception(error)

    def _gone(self, what: str, error: RayError) -> ConnectionError:
        log = logs.last_lines(str(error))
        words = [f"{self.name} actors: {what}", *filter(None, [log]), f"the last: {_cause(error)}"]
        return ConnectionError("; ".join(words))

    async def _within(self, work: Any) -> Any:
        answer = asyncio.ensure_future(work)
        try:
            # Not wait_for: the actor's own TimeoutError is none of ours.
            if not (await asyncio.wait({answer}, timeout=self._timeout_s))[0]:
                raise Hung(
                    f"a {self.name} actor did not answer within {self._timeout_s:g} s; "
                    f"set {self._setting} higher, or look at the actor's logs"
                )
            return answer.result()
        except RayTaskError as error:
            # the actor's own exception; the remote traceback stays as its cause
            raise error.cause if isinstance(error.cause, Exception) else error from error
        finally:
            answer.cancel()


def _last_idle(worker: Worker) -> tuple[int, int]:
    """Those with nothing to do first, and of them the newest."""
    return worker.calls, -worker.number


def _cause(error: RayError) -> str:
    """What Ray knows of a death, in one line: process, machine and exit."""
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(words[1:] or words)[:400]
