"""The control of a run: a named actor that holds what is wanted of its pools, and where it stands.

The driver tells it where the run stands, once a second, and gets what was asked of it since;
`jobs/scale.py` comes from the other side, from any machine of the cluster. Neither has to reach the
other's process.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from percent_ray import files
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.recipe.errors import first_line
from percent_ray.runtime import connection, places
from percent_ray.runtime.room import Resources, Room

NAMESPACE = "percent_ray"
PREFIX = "control of "
"""Of the actor's name, before the run's folder."""
FILE = "cluster.json"
"""In the run's folder: where its cluster is reached."""
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
"""What `scale` needs of the run's environment to be let in: the token's path, never the token."""
POLL_S = 1.0
"""The driver tells where the run stands at least as often."""
ANSWER_S = 20.0
"""Longest wait for a run's answer."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of one pool."""

    workers: int
    """That take groups."""
    wanted: int
    """As many it will be when all have loaded, or have answered."""
    need: Resources
    """Of one worker."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands."""

    version: int = 0
    sizes: Mapping[str, Size] = field(default_factory=dict)
    """By role."""


class Control:
    """The actor."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._asked: list[Mapping[str, int]] = []
        self._obeyed = 0
        self._changed = asyncio.Condition()

    async def state(self) -> State:
        return self._state

    async def ask(self, sizes: Mapping[str, int]) -> State:
        """Ask for sizes; where the run stands when its driver has taken them."""
        async with self._changed:
            self._asked.append(sizes)
            number = len(self._asked)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._obeyed >= number)
            return self._state

    async def next(self, obeyed: int, state: State) -> Mapping[str, int] | None:
        """Of the driver, that is at `state` and has obeyed so many: the next sizes, None where
        nobody has asked for POLL_S."""
        async with self._changed:
            self._state, self._obeyed = state, obeyed
            self._changed.notify_all()
            try:
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait_for(lambda: len(self._asked) > obeyed)
            except TimeoutError:
                return None
            return self._asked[obeyed]


async def obey(
    run: Path,
    state: Callable[[], State],
    resize: Callable[[str, int], None],
    say: Callable[[str], None],
) -> None:
    """For ever: resize the pools of the run in folder `run`, by role, as is asked. Where the actor
    dies, another takes its place; what else goes wrong is said."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"{PREFIX}{run}", "namespace": NAMESPACE, "num_cpus": 0}
    while True:
        actor: Any = None
        obeyed = 0
        try:
            actor = ray.remote(Control).options(**options, scheduling_strategy=here).remote(state())
            while True:
                answer = actor.next.remote(obeyed, state())
                sizes = await asyncio.wrap_future(answer.future())
                for role, workers in (sizes or {}).items():
                    resize(role, workers)
                obeyed += sizes is not None
        except RayActorError:
            await asyncio.sleep(POLL_S)
        except Exception as error:
            say(f"what jobs/scale.py asked could not be done: {first_line(error)}")
            await asyncio.sleep(POLL_S)
        finally:
            if actor is not None:
                ray.kill(actor)


def write_address(run: Path) -> None:
    """Into the run's folder, for `scale`: a cluster of one machine's own has no known address."""
    address = ray.get_runtime_context().gcs_address
    environment = {name: os.environ[name] for name in AUTH if os.environ.get(name)}
    files.write(run / FILE, json.dumps({"address": address, "environment": environment}))


@dataclass(frozen=True, slots=True)
class Scaled:
    """What `scale` has done."""

    run: str
    before: State
    after: State
    """Where new workers have yet to load, and others have yet to finish their groups."""
    room: Mapping[str, int]
    """By role: how many more workers the cluster can give then, if it gives to no other role."""

    def __str__(self) -> str:
        parts = [f"{self.run}, step {self.after.version}"]
        for role, after in self.after.sizes.items():
            before = self.before.sizes[role]
            to = f" -> {after.wanted}" if after.wanted != before.wanted else ""
            there = f" ({after.workers} at work now)" if after.workers != after.wanted else ""
            parts.append(
                f"{role}: {before.wanted}{to} workers{there}; the cluster can give "
                f"{self.room[role]} more of {places.words(after.need)}"
            )
        return "\n".join(parts)


def scale(run: str, sizes: Mapping[str, int]) -> Scaled:
    """Set the sizes of a live run's pools by role; none asks only where it stands.

    `run` is its folder, or the name of one in the default folder. Raises ValueError, in one line,
    where there is no such run, where it is not alive, and for sizes that it cannot have.
    """
    for role, workers in sizes.items():
        if workers < 1:
            raise ValueError(f"--{role} {workers}: a run needs at least one worker of each role")
    folder = _folder(run)
    actor = _find(folder)
    try:
        before: State = ray.get(actor.state.remote(), timeout=ANSWER_S)
        free = _left(before, sizes, places.free())
        after: State = before
        if sizes:
            after = ray.get(actor.ask.remote(dict(sizes)), timeout=ANSWER_S)
    except (GetTimeoutError, RayActorError):
        raise ValueError(f"{folder}: the run does not answer any more; see its log") from None
    room = {role: places.room(free, size.need) for role, size in after.sizes.items()}
    return Scaled(str(folder), before, after, room)


def _left(state: State, sizes: Mapping[str, int], free: Sequence[Room]) -> Sequence[Room]:
    """What no actor will hold, machine by machine. Raises ValueError where there is no place for
    what is asked."""
    if unknown := sorted(set(sizes) - set(state.sizes)):
        raise ValueError(f"{unknown[0]}: no such pool; a run has {', '.join(state.sizes)}")
    growth = {role: workers - state.sizes[role].wanted for role, workers in sizes.items()}
    # What is given back lies on machines that only Ray knows, and each share of a card by itself.
    back = [Room.of(state.sizes[role].need) for role, more in growth.items() for _ in range(-more)]
    given = Room(
        cpus=sum(room.cpus for room in back),
        memory=sum(room.memory for room in back),
        cards=[card for room in back for card in room.cards],
    )
    left = [*deepcopy(free), given]
    for role, more in growth.items():
        need, have = state.sizes[role].need, state.sizes[role].wanted
        room = places.room(left, need)
        if more > room:
            raise ValueError(
                f"--{role} {have + more}: {more} more workers of {places.words(need)} asked, the "
                f"cluster has room for {room}; set {have + room} or less, or add machines"
            )
        for _ in range(more):
            any(machine.take(need) for machine in left)
    return left


def _folder(run: str) -> Path:
    """Of a run that there is."""
    named = Path(recipes.defaults()["run"]["folder"]) / run
    for folder in (Path(run), named):
        if (folder / RECIPE_FILE).is_file():
            return folder.resolve()
    raise ValueError(f"no run {run}: no {RECIPE_FILE} in {run} nor in {named}")


def _find(folder: Path) -> Any:
    """The run's actor; this process joins its cluster."""
    recipe = recipes.load(folder / RECIPE_FILE, [])
    if recipe.runtime.backend == "local":
        raise ValueError(
            f"{folder}: a run of runtime.backend local has one worker of each role in its own "
            "process; set runtime.backend ray"
        )
    gone = ValueError(f"{folder}: the run is not alive; --resume goes on with it")
    if not ray.is_initialized():
        _join(folder, gone)
    name = f"{PREFIX}{folder}"
    if {"name": name, "namespace": NAMESPACE} not in list_named_actors(all_namespaces=True):
        raise gone
    return ray.get_actor(name, namespace=NAMESPACE)


def _join(folder: Path, gone: ValueError) -> None:
    if os.environ.get("RAY_ADDRESS"):
        connection.connect()
        return
    try:
        found = json.loads((folder / FILE).read_text())
        host, _, port = found["address"].rpartition(":")
        socket.create_connection((host, int(port)), timeout=3).close()
        environment = {name: found["environment"].get(name) for name in AUTH}
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        raise gone from None
    for variable, value in environment.items():
        if value:
            os.environ.setdefault(variable, value)
    os.environ["RAY_ADDRESS"] = found["address"]
    connection.connect()
