"""What a recipe asks of a cluster, held against what its machines have."""

import asyncio
import bisect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray import PlacementGroupID
from ray._private.state import available_resources_per_node, state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from percent_ray.recipe.tree import Recipe, Role
from percent_ray.runtime import connection
from percent_ray.runtime.room import EPS, GIB, Resources, Room

ROLES = ("rollout", "perception", "learner")
"""In the order in which they start."""
FIELDS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb"}
"""Keys of a role by Ray's names of resources."""
WAIT_S = 120.0
"""Longest wait for what others hold."""
LOOK_S = 1.0
"""Between two looks whether they still do."""
LISTED = 4
"""Machines that a line has room for."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One node of the cluster."""

    name: str
    whole: Mapping[str, float]
    """All that it has: CPU and GPU, and bytes of memory."""
    free: Mapping[str, float]
    """What of it nobody holds."""


def machines() -> list[Machine]:
    """Those of the cluster that this process has joined, or of that of RAY_ADDRESS, which it then
    joins; this machine alone, where Ray is not started for it."""
    if os.environ.get("RAY_ADDRESS"):
        connection.connect()
    if ray.is_initialized():
        free = available_resources_per_node()
        return [
            Machine(node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"], {}))
            for node in ray.nodes()
            if node["Alive"]
        ]
    import psutil
    import torch

    has = {
        "CPU": float(os.cpu_count() or 1),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(psutil.virtual_memory().total),
    }
    return [Machine("this machine", has, has)]


def resources() -> dict[str, float]:
    """CPUs, GPUs and bytes of memory of all `machines`."""
    found = machines()
    return {name: math.fsum(m.whole.get(name, 0.0) for m in found) for name in FIELDS}


def here() -> NodeAffinitySchedulingStrategy:
    """On this machine, which has the run's folder."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def need(role: Role) -> Resources:
    """Of one worker of a role."""
    asked = {"CPU": role.cpus, "GPU": role.gpus, "memory": role.memory_gb * GIB}
    return {name: amount for name, amount in asked.items() if amount}


def options(role: Role) -> dict[str, float]:
    """Ray's resource options for one worker of a role."""
    memory = {"memory": role.memory_gb * GIB} if role.memory_gb else {}
    return {"num_cpus": role.cpus, "num_gpus": role.gpus} | memory


def check(recipe: Recipe, machines: Sequence[Machine]) -> None:
    """Raises ValueError, naming the role, where the machines could not give what the recipe asks if
    nobody else held anything of them."""
    if line := lacking(recipe, machines, free=False):
        raise ValueError(line)


async def wait(
    recipe: Recipe,
    *,
    roles: Sequence[str] = ROLES,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Until what the `roles` ask is free. `say` gets a line where that is not so at once. Raises
    ValueError at once where the machines do not have it, and after a while where others still hold
    it."""
    check(recipe, machines())
    longest = min(WAIT_S, recipe.runtime.timeout_s)
    start, told = time.monotonic(), False
    while line := lacking(recipe, machines(), roles=roles, free=True):
        waited = time.monotonic() - start
        if waited > longest:
            raise ValueError(f"{line}; others have held the rest for {longest:g} s")
        if not told and waited > LOOK_S:
            say(f"{line}; waiting up to {longest:g} s for those who hold the rest")
            told = True
        free_places()
        await asyncio.sleep(LOOK_S)


def lacking(
    recipe: Recipe, machines: Sequence[Machine], *, roles: Sequence[str] = ROLES, free: bool
) -> str:
    """A line for the first of the `roles` whose workers do not find a place, with what to set;
    empty where all do. Each worker needs one machine that has all of its own share, of what is
    `free` or of everything."""
    rooms = [machine.free if free else machine.whole for machine in machines]
    placed: list[Role] = []
    for name in roles:
        role: Role = getattr(recipe.runtime, name)
        if not _fits(rooms, [*placed, *[role] * role.workers]):
            return _line(name, role, placed, machines, free=free)
        placed += [role] * role.workers
    return ""


def _line(
    name: str, role: Role, placed: Sequence[Role], machines: Sequence[Machine], *, free: bool
) -> str:
    rooms = [machine.free if free else machine.whole for machine in machines]
    counts = range(1, role.workers + 1)
    fit = bisect.bisect_left(
        counts, True, key=lambda count: not _fits(rooms, [*placed, *[role] * count])
    )
    asked = " and ".join(f"{_amount(key, role)} {key}" for key in _asked(role))
    places = [_place(machine, _asked(role), free=free) for machine in machines[:LISTED]]
    more = f" and {len(machines) - LISTED} more machines" * (len(machines) > LISTED)
    if fit:
        setting = f"set runtime.{name}.workers {fit}"
    else:
        setting = next(_smaller(name, role, placed, rooms), "set fewer workers of the other roles")
    beside = " beside the roles before it" if placed else ""
    return (
        f"runtime.{name}: {role.workers} workers x {asked} asked, {fit or 'none'} of them "
        f"{'find' if fit > 1 else 'finds'} a place{beside}, each on one machine of "
        f"{', '.join(places)}{more}; {setting}, or add machines"
    )


def _fits(machines: Sequence[Mapping[str, float]], workers: Sequence[Role]) -> bool:
    """Whether each worker finds its place when the largest look first, by one measure or the
    other."""
    for resource, field in FIELDS.items():
        unit = GIB if resource == "memory" else 1
        there = math.fsum(has.get(resource, 0.0) / unit for has in machines)
        if math.fsum(getattr(role, field) for role in workers) > there + EPS:
            return False
    orders = (
        lambda role: (role.gpus, role.cpus, role.memory_gb),
        lambda role: (role.cpus, role.gpus, role.memory_gb),
        lambda role: (role.memory_gb, role.gpus, role.cpus),
    )
    for order in orders:
        rooms = [Room.of(has) for has in machines]
        for role in sorted(workers, key=order, reverse=True):
            # The fullest first, so that what is large finds an empty one.
            rooms.sort(key=lambda room: (sum(room.cards), room.cpus, room.memory))
            if not any(room.take(need(role)) for room in rooms):
                break
        else:
            return True
    return False


def _smaller(
    name: str, role: Role, placed: Sequence[Role], machines: Sequence[Mapping[str, float]]
) -> Iterator[str]:
    """What one worker would fit with."""
    for resource in _asked(role):
        unit = GIB if resource == "memory" else 1
        for amount in sorted({has.get(resource, 0.0) / unit for has in machines}, reverse=True):
            # As it is written, and of cards whole ones.
            value = math.floor(amount * 100) / 100 if amount < 1 else float(math.floor(amount))
            less = role.model_copy(update={FIELDS[resource]: value})
            enough = value > 0 or resource == "GPU"  # which a role can do without
            if (
                enough
                and value < getattr(role, FIELDS[resource])
                and _fits(machines, [*placed, less])
            ):
                yield f"set runtime.{name}.{FIELDS[resource]} {value:g}"


def _asked(role: Role) -> list[str]:
    return [key for key, field in FIELDS.items() if getattr(role, field)]


def _amount(resource: str, role: Role) -> str:
    unit = " GiB" if resource == "memory" else ""
    return f"{getattr(role, FIELDS[resource]):g}{unit}"


def _place(machine: Machine, asked: Sequence[str], *, free: bool) -> str:
    """Such as "10.0.0.7 with 1 of 2 CPU free"."""
    parts: list[str] = []
    for key in asked:
        unit, word = (GIB, " GiB") if key == "memory" else (1, "")
        whole, left = machine.whole.get(key, 0.0) / unit, machine.free.get(key, 0.0) / unit
        parts.append(
            f"{left:.4g} of {whole:.4g}{word} {key}" if free else f"{whole:.4g}{word} {key}"
        )
    return f"{machine.name} with {' and '.join(parts)}" + " free" * free


def free_places() -> None:
    """Remove the placement groups of this job whose creator has died: Ray keeps them until the job
    ends, and Ray Train's own cleaner works only where the cluster has a dashboard. The public table
    (`ray.util.placement_group_table`) does not say who has created one."""
    job = ray.get_runtime_context().get_job_id()
    for entry in state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(entry)
        gone = found.state == PlacementGroupTableData.REMOVED
        if found.creator_job_id.hex() == job and found.creator_actor_dead and not gone:
            remove_placement_group(PlacementGroup(PlacementGroupID(found.placement_group_id)))
