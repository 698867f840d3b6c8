"""How many workers a pool should have: more while the learner waits, fewer where they idle.

A decision is about the last steps, all of which must say the same, and only steps count in which
the pool had the same workers throughout. A pool that has shrunk is busy `AIM` of the time, well
above the `IDLE` at which it would shrink again, and the learner does not wait: so sizes come to
rest.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from percent_ray.runtime.room import Resources

GROWS, SHRINKS = 3, 6
"""Steps in a row after which a pool grows, and shrinks."""
WAITS, RESTS = 0.05, 0.02
"""Share of a step that the learner waits for groups: above it waits, below it does not."""
FULL = 0.8
"""Share of the workers that have a group while the learner waits: above it more would help."""
IDLE, AIM = 0.6, 0.8
"""Share of the workers' time with a group below which there are too many, and the one to reach."""


class Reason(IntEnum):
    """Why a pool has the size that it has; the number is the metric `pool/ROLE_reason`."""

    FITS = 0
    LEARNER_WAITS = 1
    WORKERS_IDLE = 2
    NO_ROOM = 3
    """The learner waits, and the cluster has no place for more."""
    MOST = 4
    """The learner waits, and there are as many as there may be."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one step has shown of a pool; shares from 0 to 1."""

    waited: float
    """Of the step, in which the learner waited for groups."""
    busy: float
    """Of the workers' time, in which they had a group."""
    busy_waiting: float
    """Of it while the learner waited."""


@dataclass(frozen=True, slots=True)
class Decision:
    workers: int
    reason: Reason


def decide(seen: Sequence[Seen], workers: int, *, least: int, most: int, room: int) -> Decision:
    """The size of a pool of `workers` after the steps `seen`, between `least` and `most`, where the
    cluster has `room` for so many more."""
    last = seen[-GROWS:]
    if len(last) == GROWS and all(s.waited > WAITS and s.busy_waiting > FULL for s in last):
        if workers >= most:
            return Decision(workers, Reason.MOST)
        # The groups of a step took the time of update and wait, and should take the update's.
        share = min(s.waited for s in last)
        asked = min(most, max(workers + 1, math.ceil(workers / max(0.5, 1 - share))))
        granted = min(asked, workers + room)
        return Decision(granted, Reason.LEARNER_WAITS if granted > workers else Reason.NO_ROOM)
    last = seen[-SHRINKS:]
    if len(last) == SHRINKS and all(
        s.busy < IDLE and (s.waited < RESTS or s.busy_waiting < IDLE) for s in last
    ):
        # While the learner waits for the slowest of few groups, its other workers idle as well.
        needed = max(max(s.busy, s.busy_waiting * (s.waited >= RESTS)) for s in last)
        fewer = max(least, math.ceil(workers * needed / AIM))
        if fewer < workers:
            return Decision(fewer, Reason.WORKERS_IDLE)
    return Decision(workers, Reason.FITS)


class Scaled(Protocol):
    """A pool, as far as its size is concerned."""

    @property
    def workers(self) -> int: ...

    @property
    def loading(self) -> int: ...

    wanted: int

    def busy_s(self) -> float: ...

    def resize(self, workers: int) -> None: ...


@dataclass
class Watched:
    """One pool that scales itself, with its bounds and what was seen of it."""

    pool: Scaled
    least: int
    most: int
    need: Resources
    seen: list[Seen] = field(default_factory=list)
    size: int = 0
    """Workers at the beginning of the step."""
    busy: tuple[float, float] = (0.0, 0.0)
    """`busy_s` at the beginning of the step, and when its update began."""


class Scaler:
    """Looks at pools step by step, from the end of one update to the end of the next, and resizes
    them. `room` says how many more workers of a need find a place now, `ask` asks the cluster's
    autoscaler for places for so many workers of each role, and `say` gets a line a change."""

    def __init__(
        self,
        pools: Mapping[str, Watched],
        *,
        room: Callable[[Resources], int],
        ask: Callable[[Mapping[str, int]], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = dict(pools)
        self._room, self._ask, self._say, self._clock = room, ask, say, clock
        self._ended: float | None = None
        self._began, self._away = 0.0, 0.0

    def by_hand(self, role: str) -> None:
        """Somebody has set the size of a pool: it holds."""
        if self._pools.pop(role, None):
            self._say(f"{role}: set by hand, and scales itself no more")

    def away(self, seconds: float) -> None:
        """The learner did something else than to wait."""
        self._away += seconds

    def began(self) -> None:
        """The learner has its groups, and begins its update."""
        self._began = self._clock()
        for watched in self._pools.values():
            watched.busy = watched.busy[0], watched.pool.busy_s()

    def ended(self) -> dict[str, float]:
        """Its update is over: metrics, after what they say has been done."""
        now, metrics = self._clock(), {}
        if self._ended is not None:
            wait = max(0.0, self._began - self._ended - self._away)
            metrics["pool/learner_waited"] = waited = wait / max(1e-9, now - self._ended)
            for role, watched in self._pools.items():
                metrics |= self._look(role, watched, now, waited)
        self._ended, self._away = now, 0.0
        for watched in self._pools.values():
            watched.size = watched.pool.workers
            watched.busy = (watched.pool.busy_s(), 0.0)
        return metrics

    def _look(self, role: str, watched: Watched, now: float, waited: float) -> dict[str, float]:
        assert self._ended is not None
        pool, (first, middle) = watched.pool, watched.busy
        before = pool.workers
        if watched.size != before or pool.loading or pool.wanted != before:
            watched.seen.clear()
            decision = Decision(pool.wanted, Reason.FITS)
            busy = math.nan
        else:
            busy = (pool.busy_s() - first) / max(1e-9, before * (now - self._ended))
            waiting = (middle - first) / max(1e-9, before * (self._began - self._ended))
            watched.seen = [*watched.seen, Seen(waited, busy, waiting)][-SHRINKS:]
            decision = self._carry_out(role, watched, before)
        found = {"workers": before, "wanted": decision.workers, "reason": decision.reason}
        metrics = {f"pool/{role}_{name}": float(value) for name, value in found.items()}
        return metrics if math.isnan(busy) else metrics | {f"pool/{role}_busy": busy}

    def _carry_out(self, role: str, watched: Watched, before: int) -> Decision:
        bounds = {"least": watched.least, "most": watched.most}
        room = self._room(watched.need)
        decision = decide(watched.seen, before, **bounds, room=room)
        free = decide(watched.seen, before, **bounds, room=watched.most)
        if free.workers != before:  # also where there is no room yet: machines may come
            self._ask({role: free.workers})
        if decision.workers != before:
            last = watched.seen[-1]
            why = (
                f"the learner waits {last.waited:.0%} of a step for groups"
                if decision.reason == Reason.LEARNER_WAITS
                else f"workers are busy {last.busy:.0%} of the time"
            )
            self._say(f"{role}: {before} -> {decision.workers} workers: {why}")
            watched.pool.resize(decision.workers)
            watched.seen.clear()
        return decision
