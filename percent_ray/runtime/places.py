"""How many more workers the machines of the cluster have room for."""

from collections.abc import Iterable, Mapping, Sequence

import ray
from ray._private import state
from ray.autoscaler.sdk import request_resources

from percent_ray.recipe.tree import Role
from percent_ray.runtime import placement

Resources = Mapping[str, float]
"""CPU, GPU, and bytes of memory."""
NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
ENOUGH = 10_000
"""Nobody asks for more workers, also not of those that need nothing."""


def need(role: Role) -> Resources:
    """Of one worker of a role."""
    asked = placement.options(role).items()
    return {NAMES[name]: float(amount) for name, amount in asked if amount}


def free() -> list[Resources]:
    """What no actor holds, machine by machine."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [left for node, left in state.available_resources_per_node().items() if node in alive]


def room(machines: Sequence[Resources], worker: Resources) -> int:
    """How many such workers find a place."""
    if not worker:
        return ENOUGH
    # Of equal workers each machine takes what it takes, whatever the others do.
    return sum(
        int(min((machine.get(name, 0.0) + 1e-6) // amount for name, amount in worker.items()))
        for machine in machines
    )


def take(machines: Sequence[Resources], worker: Resources) -> list[Resources]:
    """What is left when one more such worker has its place, where there is one."""
    left = list(machines)
    for number, machine in enumerate(left):
        if room([machine], worker):
            rest = {name: machine.get(name, 0.0) - amount for name, amount in worker.items()}
            left[number] = {**machine, **rest}
            return left
    return left


def request(workers: Iterable[tuple[Resources, int]]) -> None:
    """Ask Ray's autoscaler for machines for so many workers of each need, whatever is asked already
    by those that wait for a place. It holds for the whole cluster, until the next request."""
    bundles = [dict(need) for need, count in workers for _ in range(count)]
    request_resources(bundles=[bundle for bundle in bundles if bundle])


def words(worker: Resources) -> str:
    """Such as "1 CPU, 0.5 GPU"."""
    parts = [
        f"{amount / placement.GIB:g} GiB" if name == "memory" else f"{amount:g} {name}"
        for name, amount in worker.items()
    ]
    return ", ".join(parts) or "no resources"
