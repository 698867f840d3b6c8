"""What learner ranks fetch of a step, and what a full fine-tune's weights cost on their way.

    python benchmarks/data_plane.py fetch [--groups 24] [--ranks 2] [--all]
    python benchmarks/data_plane.py publish [--blocks 24]

`fetch`: every rank, on a node of its own (of this machine), pulls the tables that it learns from,
of groups of 24 SD3.5-M trajectories; with --all those of all groups. Memory: 63 MB a group and
node.

`publish`: every weight of SD3.5-M (24 blocks) in bfloat16, random, on a CPU: checksum, object
store, mailbox, driver; then into a rollout worker's weights, with the checksum proved. Memory:
twice the weights.

Each prints one JSON line.
"""

import argparse
import json
import logging
import time
from typing import Any

import diffusers
import pyarrow as pa
import ray
import torch
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from torch import Tensor
from transport import table

from percent_ray.data import arrow
from percent_ray.learn.batch import chunks, groups_of
from percent_ray.models.published import SD35_MEDIUM
from percent_ray.objective.grpo import Weights
from percent_ray.runtime.mailbox import Mailbox, Order
from percent_ray.runtime.rank import fetch
from percent_ray.types import ShapedBatch, ShapedRow

IMAGES = 24
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@ray.remote(num_cpus=0)
class Node:
    """Something that runs on a node of its own."""

    def tables(self, groups: int) -> list[ray.ObjectRef]:
        group = table(IMAGES)
        return [ray.put(group) for _ in range(groups)]

    def fetch(self, batch: ShapedBatch, groups: list[int]) -> tuple[int, float]:
        """Bytes of the tables of these groups, and seconds until they are here."""
        start = time.perf_counter()
        rows = fetch(batch, groups)[0].rows
        seconds = time.perf_counter() - start
        return sum(row.payload.nbytes for row in rows if row.payload is not None), seconds


def measure_fetch(groups: int, ranks: int, every: bool) -> dict[str, Any]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    store = int(70e6 * groups + 2e8)
    for name in ("sender", *(f"rank{rank}" for rank in range(ranks))):
        cluster.add_node(num_cpus=1, object_store_memory=store, resources={name: 1})
    ray.init(address=cluster.address, **QUIET)
    try:
        sender: Any = Node.options(resources={"sender": 1}).remote()
        actors: list[Any] = [Node.options(resources={f"rank{i}": 1}).remote() for i in range(ranks)]
        refs, nothing = ray.get(sender.tables.remote(groups)), ray.put(None)
        weights = Weights(torch.zeros(IMAGES, 9))
        rows = [ShapedRow(n, 0, ref, nothing, weights) for n, ref in enumerate(refs)]
        sizes = [IMAGES] * groups
        parts = chunks(sizes, 2, seed=0, version=0)
        mine = [
            list(range(groups)) if every else groups_of(sizes, parts, rank=rank, world=ranks)
            for rank in range(ranks)
        ]
        batch = ShapedBatch(0, tuple(rows))
        pulls = [actor.fetch.remote(batch, own) for actor, own in zip(actors, mine, strict=True)]
        found = ray.get(pulls)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {
        "benchmark": "fetch",
        "step_gb": round(groups * table(IMAGES).nbytes / 1e9, 2),
        "rank_gb": [round(size / 1e9, 2) for size, _ in found],
        "rank_s": [round(seconds, 2) for _, seconds in found],
    }


def random_weights(blocks: int) -> dict[str, Tensor]:
    """Of SD3.5-M's transformer with so many blocks, in bfloat16."""
    settings = {**SD35_MEDIUM["transformer/config.json"], "num_layers": blocks}
    with torch.device("meta"):
        network: Any = diffusers.SD3Transformer2DModel.from_config(settings)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(2**14, weight.shape, dtype=torch.int16, generator=generator).view(
            torch.bfloat16
        )
        for name, weight in network.named_parameters()
    }


@ray.remote(num_cpus=0)
class Learner:
    """Rank 0, once it has gathered the weights."""

    def publish(self, mailbox: Any, blocks: int) -> dict[str, float]:
        weights = random_weights(blocks)
        size = sum(tensor.nbytes for tensor in weights.values())
        start = time.perf_counter()
        checksum = arrow.checksum(weights)
        hashed = time.perf_counter()
        reference = ray.put(arrow.pack(weights))
        written = time.perf_counter()
        del weights
        ray.get(mailbox.answer.remote(0, 0, (None, checksum, reference)))
        return {"gb": size / 1e9, "checksum_s": hashed - start, "write_s": written - hashed}


@ray.remote(num_cpus=0)
class Rollout:
    """Takes weights as a rollout worker does."""

    def load(self, weights: pa.Table, checksum: str) -> dict[str, float]:
        start = time.perf_counter()
        tensors = arrow.unpack(weights)
        assert arrow.checksum(tensors) == checksum
        proved = time.perf_counter()
        own = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
        return {"proof_s": proved - start, "copy_s": time.perf_counter() - proved}


def measure_publish(blocks: int) -> dict[str, Any]:
    ray.init(object_store_memory=int(4.8e8 * blocks), include_dashboard=False, **QUIET)
    try:
        mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote(1)
        learner: Any = Learner.remote()
        given = mailbox.order.remote(0, Order("publish"))
        found: dict[str, float] = dict(ray.get(learner.publish.remote(mailbox, blocks)))
        start = time.perf_counter()
        _, checksum, weights = ray.get(given)
        found["handed_s"] = time.perf_counter() - start
        [node] = ray.nodes()
        # Ray's public state API needs its dashboard.
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"])
        found["store_gb"] = stats.store_stats.object_store_bytes_used / 1e9
        rollout: Any = Rollout.remote()
        found |= dict(ray.get(rollout.load.remote(weights, checksum)))
    finally:
        ray.shutdown()
    return {"benchmark": "publish"} | {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["fetch", "publish"])
    parser.add_argument("--groups", type=int, default=24, help="groups in the step")
    parser.add_argument("--ranks", type=int, default=2, help="learner ranks, each on its node")
    parser.add_argument("--all", action="store_true", help="every rank pulls every group")
    parser.add_argument("--blocks", type=int, default=24, help="of SD3.5-M's transformer")
    given = parser.parse_args()
    if given.what == "fetch":
        found = measure_fetch(given.groups, given.ranks, given.all)
    else:
        found = measure_publish(given.blocks)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
