"""Draws and judges the pictures of every row on a Ray cluster, side by side.

Plain actors, and not Ray Data's pools: there stages stand in a line, pictures would pass through
every judge in turn, and one that is slow or gone would hold up the rest. Here the pictures of a
(row, prompt) are drawn once, lie in the object store until every judge has looked, and each word is
on disk as soon as it is said. So few are under way at once that memory does not grow with their
number.

An actor that dies is started again and asked again. A row whose model does not load or hangs, a
prompt that a judge fails on after its retries, and a judge that keeps dying or hangs are left out,
and said.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from percent_ray.evaluation import pictures
from percent_ray.evaluation.actors import Drawer, Drawn, Judging, NotLoaded
from percent_ray.evaluation.checkpoints import Checkpoint
from percent_ray.evaluation.plan import Plan, Row, Workers
from percent_ray.evaluation.quality import LATENT, Judgement
from percent_ray.evaluation.store import SHOWN, RowStore, Store
from percent_ray.recipe.errors import first_line
from percent_ray.runtime import connection, placement
from percent_ray.runtime.pool import Hung, Pool
from percent_ray.runtime.room import Room

DRAW = "draw"
"""Names the actors that draw."""
INFLIGHT = 2
"""Calls that an actor has at a time: the next pictures travel while it looks at these."""
DRAWING_GPUS = 0.51
"""Of a card for an actor that draws, so that Ray does not put two on one; the judges share the
rest."""
CARDS_PER_JUDGE = 8
"""Drawing is what takes long: so many cards that draw keep one actor of each judge busy at most."""


@dataclass(frozen=True, slots=True)
class Work:
    """One prompt of one row, of which something is not on disk yet."""

    row: Row
    number: int
    judges: tuple[str, ...]
    """Those that have not said their word."""
    draw: bool
    """Whether it is to be drawn; else its pictures were kept."""


def todo(plan: Plan, store: Store) -> list[Work]:
    """What is not on disk yet, row by row."""
    found: list[Work] = []
    for row in plan.rows:
        place = store.row(row.name)
        for number in range(len(plan.prompts)):
            judges = tuple(name for name in plan.scorers if not place.has(name, number))
            kept = bool(place.pictures(number))
            draw = (
                (judges and not kept)
                or (plan.evaluation.keep and not kept)
                or (isinstance(row.of, Checkpoint) and not place.has(LATENT, number))
                or (number < SHOWN and not place.strip(number).is_file())
            )
            if judges or draw:
                found.append(Work(row, number, judges, bool(draw)))
    return found


class Engine:
    """One evaluation, on the cluster that this process has joined."""

    def __init__(self, plan: Plan, store: Store, sizes: "Sizes") -> None:
        self._plan = plan
        self._rows = {row.name: store.row(row.name) for row in plan.rows}
        evaluation = plan.evaluation
        self._drawers = _pool(Drawer, {}, sizes[DRAW], DRAW, evaluation.timeout_s)
        self._judges: dict[str, Pool] = {}
        for name, settings in plan.scorers.items():
            arguments = {"name": name, "settings": settings, "asked": plan.asked[name]}
            self._judges[name] = _pool(Judging, arguments, sizes[name], name, evaluation.timeout_s)
        most = max((pool.workers for pool in self._judges.values()), default=0)
        self._room = asyncio.Semaphore(INFLIGHT * (self._drawers.workers + most))
        self._gone: dict[tuple[str, str], str] = {}
        """Rows and judges that nothing more is asked of, and why."""
        self.failures: dict[tuple[str, str], list[str]] = {}
        """By row's label and what failed: a line for each prompt."""

    async def ready(self) -> list[str]:
        """Every judge has loaded and has answered; what was loaded, a line each. Raises ValueError,
        in one line."""
        first = self._plan.prompts[0]
        said = await asyncio.gather(*(pool.ready(first) for pool in self._judges.values()))
        return [lines[0] for lines in said]

    async def run(
        self, works: Sequence[Work], *, say: Callable[[str], None], done: Callable[[], None]
    ) -> None:
        """Do it all. `say` is called with a line where a row was loaded, `done` after each work.

        Raises ConnectionError where those that draw keep dying; what was done is on disk.
        """

        async def one(work: Work) -> None:
            try:
                await self._one(work, say)
            finally:
                self._room.release()
            done()

        try:
            async with asyncio.TaskGroup() as group:
                for work in works:
                    await self._room.acquire()
                    group.create_task(one(work))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def close(self) -> None:
        for pool in (self._drawers, *self._judges.values()):
            pool.close()

    async def _one(self, work: Work, say: Callable[[str], None]) -> None:
        place = self._rows[work.row.name]
        pixels = await (self._draw(work, place, say) if work.draw else _kept(place, work.number))
        if pixels is not None:
            judging = (self._judge(name, work, pixels, place) for name in work.judges)
            await asyncio.gather(*judging)

    async def _draw(self, work: Work, place: RowStore, say: Callable[[str], None]) -> Any:
        """Reference to the pictures; None where they cannot be had."""
        row, number, evaluation = work.row, work.number, self._plan.evaluation
        if why := self._gone.get(("row", row.name)):
            return self._fail(row, "loading", why)
        try:
            drawn, pixels = await self._drawers.call(
                "draw",
                row,
                self._plan.prompts[number],
                number,
                images=evaluation.images,
                seed=evaluation.seed,
                keep=evaluation.keep,
                returns=2,
            )
        except (NotLoaded, Hung) as error:
            self._gone["row", row.name] = first_line(error)
            return self._fail(row, "loading", first_line(error))
        except ValueError as error:
            return self._fail(row, "drawing", first_line(error))
        if drawn.loaded:
            say(f"{row.label}: {drawn.loaded}")
        self._keep(drawn, place, number)
        return pixels

    def _keep(self, drawn: Drawn, place: RowStore, number: int) -> None:
        if drawn.files and not place.pictures(number):
            place.put_pictures(number, drawn.files)
        if number < SHOWN and not place.strip(number).is_file():
            place.put_strip(number, drawn.strip)
        if drawn.latents is not None and not place.has(LATENT, number):
            place.put(LATENT, number, Judgement(features=torch.tensor(drawn.latents)))

    async def _judge(self, name: str, work: Work, pixels: Any, place: RowStore) -> None:
        prompt = self._plan.prompts[work.number]
        tries = self._plan.scorers[name].retries + 1
        for last in (False,) * (tries - 1) + (True,):
            if why := self._gone.get(("judge", name)):
                return self._fail(work.row, name, why)
            try:
                [said] = await self._judges[name].call("judge", pixels, prompt)
                return place.put(name, work.number, said)
            except (ConnectionError, Hung) as error:
                self._gone["judge", name] = first_line(error)
            except Exception as error:  # of a scorer's own code, too
                if last:
                    return self._fail(work.row, name, first_line(error))
        return self._fail(work.row, name, self._gone["judge", name])

    def _fail(self, row: Row, what: str, why: str) -> None:
        self.failures.setdefault((row.label, what), []).append(why)


async def _kept(place: RowStore, number: int) -> Any:
    """Reference to pictures that were kept."""
    paths = place.pictures(number)
    return _decode.remote([path.read_bytes() for path in paths], str(paths[0]))


@ray.remote(num_cpus=1)
def _decode(contents: Sequence[bytes], first: str) -> Any:
    try:
        return pictures.decode(contents)
    except Exception as error:
        raise ValueError(
            f"{first} or one beside it is damaged, delete them to have them drawn again: "
            f"{first_line(error)}"
        ) from error


Sizes = Mapping[str, tuple[int, float]]
"""By judge, and of those that draw under `DRAW`: actors, and GPUs of each."""


def sizes_of(plan: Plan, cards: float) -> Sizes:
    """What a plan asks of a cluster of so many GPUs; `Workers` says how many where it does not."""
    evaluation = plan.evaluation
    default = evaluation.judge.get("default", Workers())
    rest = (1 - DRAWING_GPUS) / max(1, len(plan.scorers))

    def size(asked: Workers, gpus: float, cards_per_worker: int) -> tuple[int, float]:
        workers = asked.workers or max(1, math.ceil(cards / cards_per_worker))
        return workers, (gpus if cards else 0.0) if asked.gpus is None else asked.gpus

    judges = {
        name: size(evaluation.judge.get(name, default), rest, CARDS_PER_JUDGE)
        for name in plan.scorers
    }
    return {DRAW: size(evaluation.draw, DRAWING_GPUS, 1), **judges}


def _pool(
    kind: type, arguments: Mapping[str, Any], size: tuple[int, float], name: str, timeout_s: float
) -> Pool:
    workers, gpus = size
    # Two processes of two threads each would wait for each other. Ray hides no GPU from actors that
    # ask for none; all would take the first.
    variables = {"TOKENIZERS_PARALLELISM": "false"}
    variables |= {} if gpus else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    actor = ray.remote(kind).options(
        num_cpus=1,
        num_gpus=gpus,
        runtime_env={"env_vars": variables},
    )
    return Pool(
        lambda number: actor.remote(**arguments),
        workers,
        name=name,
        inflight=INFLIGHT,
        timeout_s=timeout_s,
        setting="timeout_s",
    )


def _check(sizes: Sizes, machines: Sequence[placement.Machine]) -> None:
    """Raises ValueError where an actor finds no place: its share of a card is on one card. One CPU
    is left for reading kept pictures."""
    rooms = [Room.of(machine.whole) for machine in machines]
    there = ", ".join(
        f"{m.whole.get('CPU', 0):g} CPUs and {m.whole.get('GPU', 0):g} GPUs" for m in machines
    )
    largest_first = sorted({**sizes, "reading": (1, 0.0)}.items(), key=lambda item: -item[1][1])
    for name, (workers, gpus) in largest_first:
        for placed in range(workers):
            if not any(room.take({"CPU": 1.0, "GPU": gpus}) for room in rooms):
                raise ValueError(
                    f"{name}: {workers} actors of 1 CPU and {gpus:g} GPU asked, {placed} of them "
                    f"find a place beside the others on machines of {there}; set fewer under draw "
                    "and judge, or add machines"
                )


@contextlib.contextmanager
def cluster(plan: Plan, store: Store) -> Iterator[Engine]:
    """An engine on the cluster of RAY_ADDRESS, or on one of this machine that ends with it.

    Raises ValueError where the cluster has too few CPUs or GPUs for the actors.
    """
    sizes = sizes_of(plan, placement.resources()["GPU"])
    actors = sum(workers for workers, _ in sizes.values())
    # A call that fails is said once, by us; Ray would print its second result's error as well.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # One of our own has a CPU for every actor also where there are fewer cores: they share them.
    started = connection.connect(cpus=max(actors + 1, os.cpu_count() or 1))
    try:
        _check(sizes, placement.machines())
        engine = Engine(plan, store, sizes)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        if started:
            connection.leave()
