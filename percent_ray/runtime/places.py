"""How many more workers the machines of the cluster have room for."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

import ray
from ray._private import state
from ray.autoscaler.sdk import request_resources

from percent_ray.runtime.room import GIB, Resources, Room

ENOUGH = 10_000
"""Nobody asks for more workers, also not of those that need nothing."""


def free() -> list[Room]:
    """What no actor holds, machine by machine."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = state.available_resources_per_node().items()
    return [Room.of(left) for node, left in found if node in alive]


def room(machines: Sequence[Room], worker: Resources) -> int:
    """How many such workers find a place."""
    if not worker:
        return ENOUGH
    count = 0
    for machine in machines:  # of equal workers each takes what it takes, whatever the others do
        left = deepcopy(machine)
        while count < ENOUGH and left.take(worker):
            count += 1
    return count


def request(workers: Iterable[tuple[Resources, int]]) -> None:
    """Ask Ray's autoscaler for machines for so many workers of each need, whatever is asked already
    by those that wait for a place. It holds for the whole cluster, until the next request."""
    bundles = [dict(need) for need, count in workers for _ in range(count)]
    request_resources(bundles=[bundle for bundle in bundles if bundle])


def words(worker: Resources) -> str:
    """Such as "1 CPU, 0.5 GPU"."""
    parts = [
        f"{amount / GIB:g} GiB" if name == "memory" else f"{amount:g} {name}"
        for name, amount in worker.items()
    ]
    return ", ".join(parts) or "no resources"
