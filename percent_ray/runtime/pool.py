"""Actors that do one thing, and whoever of them is free."""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError


class Pool:
    """Handles of Ray actors, each with at most `inflight` calls at a time.

    A call that its actor's death interrupts is made again by Ray on the restarted actor, as often
    as the actor's own `max_task_retries` says. `setting` names what a user sets for longer waits.
    """

    def __init__(
        self, actors: Sequence[Any], *, name: str, inflight: int, timeout_s: float, setting: str
    ) -> None:
        self.name = name
        self.actors = list(actors)
        self.waiting = 0
        self._timeout_s = timeout_s
        self._setting = setting
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for handle in self.actors * inflight:
            self._free.put_nowait(handle)

    async def ready(self, *args: Any) -> list[Any]:
        """Every actor has loaded its models; what each says of them. One that dies while it loads
        would die again: that ends the start."""
        loading = [actor.ready.options(max_task_retries=0).remote(*args) for actor in self.actors]
        return [await self._within(asyncio.wrap_future(ref.future())) for ref in loading]

    async def call(self, method: str, *args: Any, returns: int = 1, **kwargs: Any) -> list[Any]:
        """`method` on the next free actor: its first return value, then references to the rest.

        Raises what the method raises; ConnectionError where the actor is gone for good, and
        TimeoutError where it does not answer.
        """
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
                f"set {self._setting} higher, or look at the actor's logs"
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
