"""Pools of fake actors: who gets a call, who joins, who leaves, and what becomes of the dead."""

import asyncio
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from percent_ray.runtime.pool import DEATHS, Hung, Pool


@dataclass
class Answer:
    """A reference of Ray's, as far as a pool looks at it."""

    done: Future[Any] = field(default_factory=Future)

    def future(self) -> Future[Any]:
        return self.done


@dataclass
class Method:
    actor: "FakeActor"
    name: str

    def options(self, *, num_returns: int) -> "Method":
        return self

    def remote(self, *args: Any) -> Answer:
        answer = Answer()
        self.actor.calls.append((self.name, args, answer))
        return answer


@dataclass
class FakeActor:
    number: int
    calls: list[tuple[str, tuple[Any, ...], Answer]] = field(default_factory=list)
    killed: int = 0

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    @property
    def open(self) -> list[Any]:
        """Arguments of the calls that wait for their answer."""
        return [
            args[0]
            for name, args, answer in self.calls
            if name == "work" and not answer.done.done()
        ]

    def finish(self, error: Exception | None = None, *, name: str = "work") -> None:
        """Answers the first open call."""
        for called, args, answer in self.calls:
            if called == name and not answer.done.done():
                if error:
                    answer.done.set_exception(error)
                else:
                    answer.done.set_result((self.number, *args))
                return
        raise AssertionError(f"actor {self.number} has no open {name}")

    def die(self) -> None:
        for _, _, answer in self.calls:
            if not answer.done.done():
                answer.done.set_exception(ActorDiedError())


class Scene:
    """A pool of `workers` that have loaded."""

    def __init__(self, workers: int, inflight: int = 1, timeout_s: float = 60) -> None:
        self.actors: list[FakeActor] = []
        self.said: list[str] = []
        self.pool = Pool(
            self._start,
            workers,
            name="rollout",
            inflight=inflight,
            timeout_s=timeout_s,
            setting="runtime.timeout_s",
            say=self.said.append,
            kill=self._kill,
        )

    def _start(self, number: int) -> FakeActor:
        self.actors.append(FakeActor(number))
        return self.actors[-1]

    def _kill(self, actor: FakeActor) -> None:
        actor.killed += 1
        actor.die()

    async def load(self) -> "Scene":
        ready = asyncio.create_task(self.pool.ready("prompt"))
        await settle()
        for actor in self.actors:
            actor.finish(name="ready")
        await ready
        return self

    def call(self, number: int, **options: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.pool.call("work", number, **options))

    @property
    def alive(self) -> list[int]:
        return [actor.number for actor in self.actors if not actor.killed]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def play(scene: Any) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_call_goes_to_who_has_least_and_waits_where_all_are_full():
    async def scene() -> None:
        s = await Scene(2, inflight=2).load()
        calls = [s.call(i) for i in range(6)]
        await settle()
        assert [actor.open for actor in s.actors] == [[0, 2], [1, 3]]
        assert s.pool.waiting == 2
        urgent = s.call(9, urgent=True)
        s.actors[1].finish()
        await settle()
        assert s.actors[1].open == [3, 9], "urgent before 4 and 5"
        for _ in range(4):
            for actor in s.actors:
                if actor.open:
                    actor.finish()
            await settle()
        assert [call.result()[0][1] for call in calls] == list(range(6))
        assert urgent.result() == [(1, 9)]

    play(scene)


def test_a_pool_that_grows_gives_nothing_to_who_has_not_loaded():
    async def scene() -> None:
        s = await Scene(1).load()
        calls = [s.call(i) for i in range(3)]
        s.pool.resize(3)
        await settle()
        assert [actor.open for actor in s.actors] == [[0], [], []]
        assert (s.pool.workers, s.pool.loading, s.pool.wanted) == (1, 2, 3)
        assert s.actors[2].calls[0][:2] == ("ready", ("prompt",))
        s.actors[2].finish(name="ready")
        await settle()
        assert [actor.open for actor in s.actors] == [[0], [], [1]]
        assert s.said == ["rollout worker 2 joins: 2 of them"]
        s.actors[1].finish(name="ready")
        await settle()
        assert [actor.open for actor in s.actors] == [[0], [2], [1]]
        for actor in s.actors:
            actor.finish()
        assert [await call for call in calls] == [[(0, 0)], [(2, 1)], [(1, 2)]]

    play(scene)


def test_who_is_retired_answers_first_and_gets_nothing_more():
    async def scene() -> None:
        s = await Scene(3, inflight=2).load()
        calls = [s.call(i) for i in range(5)]
        await settle()
        assert [actor.open for actor in s.actors] == [[0, 3], [1, 4], [2]]
        s.pool.resize(1)
        assert s.alive == [0, 1, 2], "all of them are at work"
        calls.append(s.call(5))
        await settle()
        s.actors[2].finish()
        s.actors[1].finish()
        await settle()
        assert s.alive == [0, 1], "4 is under way on 1"
        s.actors[1].finish()
        await settle()
        assert s.alive == [0]
        for _ in range(3):
            s.actors[0].finish()
            await settle()
        answers = [(await call)[0] for call in calls]
        assert [number for _, number in answers] == list(range(6)), "none lost"
        assert Counter(args for a in s.actors for name, args, _ in a.calls if name == "work") == {
            (i,): 1 for i in range(6)
        }, "none doubled"

    play(scene)


def test_who_idles_leaves_at_once_and_who_was_to_leave_may_stay():
    async def scene() -> None:
        s = await Scene(3).load()
        call = s.call(0)
        await settle()
        s.pool.resize(2)
        assert s.alive == [0, 1]
        s.call(1)
        await settle()
        s.pool.resize(1)
        assert s.alive == [0, 1]
        s.pool.resize(2)
        s.actors[1].finish()
        await settle()
        assert s.alive == [0, 1]
        assert len(s.actors) == 3, "nobody new was started"
        s.pool.resize(3)
        s.pool.resize(2)
        assert s.alive == [0, 1], "who still loads leaves first"
        s.actors[0].finish()
        await call

    play(scene)


def test_a_load_that_fails_is_said_and_the_pool_goes_on():
    async def scene() -> None:
        s = await Scene(1).load()
        s.pool.resize(3)
        await settle()
        s.actors[1].finish(ValueError("no such folder\nmore"), name="ready")
        for place in range(2, 2 + DEATHS):
            await settle()
            s.actors[place].die()
        await settle()
        assert s.pool.wanted == s.pool.workers == 1
        assert s.said[0] == ("rollout worker 1 did not load, and is left out: no such folder")
        assert (
            f"rollout worker 2 did not load, and is left out: it died {DEATHS} times" in s.said[1]
        )
        assert s.alive == [0]
        call = s.call(0)
        await settle()
        s.actors[0].finish()
        assert await call == [(0, 0)]

    play(scene)


def test_what_a_dead_worker_had_is_asked_of_another_and_its_place_is_filled():
    async def scene() -> None:
        s = await Scene(2, inflight=2).load()
        calls = [s.call(i) for i in range(6)]
        await settle()
        s.actors[0].die()
        await settle()
        assert [actor.killed for actor in s.actors] == [1, 0, 0]
        s.actors[2].finish(name="ready")
        await settle()
        assert {*s.actors[2].open} == {0, 2}, "what was lost comes first"
        assert s.pool.workers == 2
        for _ in range(5):
            for actor in s.actors[1:]:
                if actor.open:
                    actor.finish()
            await settle()
        assert [call.result()[0][1] for call in calls] == list(range(6))

    play(scene)


def test_who_hangs_is_ended_and_the_next_call_goes_to_another():
    async def scene() -> None:
        s = await Scene(1, timeout_s=0.05).load()
        hung, waiting = s.call(0), s.call(1)
        with pytest.raises(Hung, match=r"^a rollout actor did not answer within 0.05 s"):
            await hung
        await settle()
        assert [actor.killed for actor in s.actors] == [1, 0]
        s.actors[1].finish(name="ready")
        await settle()
        s.actors[1].finish()
        assert (await waiting)[0] == (1, 1)
        later = s.call(2)
        await settle()
        s.actors[1].finish(TimeoutError("of the actor's own"))
        with pytest.raises(TimeoutError, match="own"):
            await later
        assert s.alive == [1]

    play(scene)


def test_a_call_that_kills_whoever_gets_it_ends_with_one_line():
    async def scene() -> None:
        s = await Scene(1).load()
        call = s.call(0)
        for place in range(DEATHS):
            await settle()
            if place:
                s.actors[place].finish(name="ready")
                await settle()
            s.actors[place].die()
        with pytest.raises(ConnectionError, match=f"'work' has ended {DEATHS} of them"):
            await call

    play(scene)


def test_a_pool_of_which_nobody_is_left_says_so():
    async def scene() -> None:
        s = await Scene(1).load()
        call = s.call(0)
        await settle()
        s.actors[0].die()
        await settle()
        s.actors[1].finish(ValueError("disk is gone"), name="ready")
        with pytest.raises(ConnectionError, match="no rollout actor is left; the last: disk is"):
            await call
        with pytest.raises(ConnectionError, match="no rollout actor is left"):
            await s.pool.call("work", 1)

    play(scene)


def test_a_place_that_never_comes_is_said_and_ends_a_pool_that_has_no_other():
    async def scene() -> None:
        s = await Scene(1, timeout_s=0.05).load()
        s.pool.resize(2)
        await asyncio.sleep(0.08)
        assert "rollout worker 1 has not loaded within 0.05 s" in s.said[0]
        call = s.call(0)
        await settle()
        s.actors[0].die()
        with pytest.raises(TimeoutError, match="no place for it, or it hangs; no other is left"):
            await call

    play(scene)


def test_a_call_that_is_cancelled_in_its_turn_takes_no_worker_along():
    async def scene() -> None:
        s = await Scene(2, inflight=2).load()
        for number in range(3):
            s.call(number)
        await settle()
        s.pool.resize(1)
        late = s.call(3)
        await settle()
        assert s.pool.waiting == 1
        s.pool.resize(2)  # it has its worker now, and has not gone on
        late.cancel()
        await settle()
        s.call(4)
        await settle()
        assert [actor.open for actor in s.actors] == [[0, 2], [1, 4]]

    play(scene)


def test_the_time_that_workers_are_busy_is_counted():
    async def scene() -> None:
        s = await Scene(2).load()
        before = s.pool.busy_s()
        call = s.call(0)
        await asyncio.sleep(0.1)
        assert s.pool.busy_s() - before == pytest.approx(0.1, abs=0.05)
        s.actors[0].finish()
        await call
        idle = s.pool.busy_s()
        await asyncio.sleep(0.05)
        assert s.pool.busy_s() == idle

    play(scene)
