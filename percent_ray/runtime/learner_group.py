"""The learner group: Ray Train workers under DeepSpeed ZeRO, fed through a mailbox actor.

The driver gives numbered orders; every rank fetches each one and answers it. Rank 0's answer comes
back as the return value of the mailbox's method. The published weights are written once, by rank 0
into its machine's object store, and everybody else has a reference: with rank 0 they are lost.

    who          waits for                    what unblocks it                     gives up after
    driver       the answer to an order       the answer; the end of `fit`; the    runtime.timeout_s
                                              mailbox's death
    mailbox      every rank's answer          the last of them                     never
    mailbox      `fit`, Ray Train's call      the controller's return or death     never
    controller   the ranks                    return or death of one, looked for   never
                                              every 0.2 s
    rank         its next order               the order; an empty answer after     never
                                              POLL_S; the mailbox's death
    rank         the others, in a collective  their part in it; the death of one   runtime.timeout_s

Who never gives up is ended by its owner's death: the driver owns the mailbox, the mailbox owns Ray
Train's controller, and the controller owns the ranks. So whatever it was that died or hangs, the
driver ends the mailbox and nothing is left; then it starts another group: `percent_ray/recover.py`.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from percent_ray.recipe.errors import first_line
from percent_ray.recipe.tree import Recipe
from percent_ray.runtime import placement
from percent_ray.runtime.mailbox import FINAL, Answer, Ended, Kind, Mailbox, Order
from percent_ray.types import LearnerLost, ShapedBatch

CLOSE_S = 30.0
"""Longest wait for ranks that are told to stop."""
LOOK_S = 1.0
"""Between two looks for places that a dead group still holds."""
SAID = 200
"""Letters of an error that a line has room for."""


class LearnerGroup:
    """The driver's handle: starts the group (`start`), gives it orders, ends it."""

    def __init__(self, recipe: Recipe, *, run_folder: Path, resume: Path | None) -> None:
        self._recipe = recipe
        self._files = {"run_folder": run_folder, "resume": resume}
        self._number = 0
        # Ray Train writes into the run's folder.
        actor = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=placement.here())
        self._mailbox: Any = actor.remote(recipe.runtime.learner.workers)
        self._fit: asyncio.Future[Ended | None] | None = None

    def start(self) -> None:
        """Start the ranks. They are not waited for: the first order is."""
        fit = self._mailbox.fit.remote(self._recipe, **self._files)
        self._fit = asyncio.wrap_future(fit.future())
        # Marks an error as retrieved: `order` raises it where it matters.
        self._fit.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def order(
        self,
        kind: Kind,
        *,
        batch: ShapedBatch | None = None,
        folder: str = "",
        timeout_s: float | None = None,
    ) -> Answer:
        """Carry out one order on every rank; returns rank 0's answer.

        Raises LearnerLost when one of the group's processes has died, and when the answer does not
        come in `timeout_s` (`runtime.timeout_s` where None). What a rank raises of `FINAL` is
        raised as it is.
        """
        assert self._fit is not None, "not started"
        timeout_s = timeout_s or self._recipe.runtime.timeout_s
        given = self._mailbox.order.remote(self._number, Order(kind, batch, folder))
        self._number += 1
        answer = asyncio.ensure_future(asyncio.wrap_future(given.future()))
        done = await _first({answer, self._fit}, timeout_s, starting=self._number == 1)
        if answer in done and not isinstance(answer.exception(), RayActorError):
            return answer.result()
        answer.cancel()
        if not done:
            raise LearnerLost(
                f"the learner group did not finish {kind!r} in {timeout_s:g} s; where it is only "
                "slow, set runtime.timeout_s higher"
            )
        raise await self._why()

    async def _why(self) -> Exception:
        """What ended the group, where anything did."""
        assert self._fit is not None
        try:
            ended = await self._fit
        except RayActorError:
            return LearnerLost("the learner group's mailbox died")
        if ended is None:
            return LearnerLost("the learner group ended before the run did")
        if isinstance(ended.error, FINAL):
            return ended.error
        lost = LearnerLost(f"{ended.what}: {first_line(ended.error)[:SAID]}")
        lost.__cause__ = ended.error
        return lost

    async def close(self) -> None:
        """Let every rank finish what it was ordered and return, then end what is left."""
        try:
            # One that has died, or does not answer, cannot be told to stop.
            with contextlib.suppress(Exception):
                if self._fit is not None and not self._fit.done():
                    await self.order("stop", timeout_s=CLOSE_S)
                    await asyncio.wait({self._fit}, timeout=CLOSE_S)
        finally:
            self.end()

    def end(self) -> None:
        """End every process of the group at once."""
        ray.kill(self._mailbox)


async def _first(
    futures: set[asyncio.Future[Any]], timeout_s: float, *, starting: bool
) -> set[asyncio.Future[Any]]:
    """Those that are done when the first of them is, or after `timeout_s`; none of them then. While
    a group is starting, it gets the place of one that has died."""
    end, done = time.monotonic() + timeout_s, set()
    while not done and (left := end - time.monotonic()) > 0:
        if starting:
            placement.free_places()
        done, _ = await asyncio.wait(
            futures,
            timeout=min(left, LOOK_S) if starting else left,
            return_when=asyncio.FIRST_COMPLETED,
        )
    return done
