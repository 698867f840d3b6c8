"""How fast a group's payload goes through Ray's object store, and whether reading it copies it.

    python benchmarks/transport.py [--images 80] [--repeats 5]

A trajectory table of about 200 MB (SD3.5-M latents at 512 x 512, nine trained steps) is returned
by one actor and read by another. Beside it, as the floor, the same bytes as one numpy array.
Prints one JSON line; `zero_copy` is true when the tensor that the reader sees lies inside the
object store's shared mapping.
"""

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from percent_ray.data import arrow


def table(images: int) -> pa.Table:
    """A group of `images` SD3.5-M trajectories: 10 latents and 9 means of [16, 64, 64] float16."""
    shape = (16, 64, 64)
    generator = torch.Generator().manual_seed(0)

    def noise(*lead: int) -> torch.Tensor:
        return torch.randn(*lead, *shape, generator=generator).half()

    return arrow.trajectory_table(
        latents=noise(images, 10),
        means=noise(images, 9),
        log_probs=torch.zeros(images, 9),
        final=noise(images),
        steps=range(9),
    )


def in_object_store(address: int) -> bool:
    """Whether an address of this process lies in the object store's shared memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return "plasma" in line
    return False


@ray.remote(num_cpus=0)
class Sender:
    def __init__(self, images: int) -> None:
        self.table = table(images)
        self.array = np.ones(self.table.nbytes, np.uint8)

    def size(self) -> int:
        return self.table.nbytes

    def send(self, kind: str) -> Any:
        return self.table if kind == "arrow" else self.array


@ray.remote(num_cpus=0)
class Reader:
    def read(self, wrapped: list[ray.ObjectRef]) -> dict[str, Any]:
        """Seconds to get the table and to have a tensor of it, and that tensor's address."""
        start = time.perf_counter()
        received = ray.get(wrapped[0])
        got = time.perf_counter()
        latents = arrow.column(received, "latents")
        viewed = time.perf_counter()
        again = arrow.column(ray.get(wrapped[0]), "latents")
        return {
            "get_s": got - start,
            "view_s": viewed - got,
            "zero_copy": in_object_store(latents.data_ptr())
            and latents.data_ptr() == again.data_ptr(),
            "address": hex(latents.data_ptr()),
        }


def measure(images: int, repeats: int) -> dict[str, Any]:
    sender: Any = Sender.remote(images)
    reader: Any = Reader.remote()
    size: int = ray.get(sender.size.remote())
    size_mb = size / 1e6
    seconds: dict[str, list[float]] = {"arrow": [], "numpy": []}
    reads: list[dict[str, Any]] = []
    for _ in range(repeats):
        for kind in seconds:
            start = time.perf_counter()
            ref = sender.send.remote(kind)
            ray.wait([ref], fetch_local=False)
            seconds[kind].append(time.perf_counter() - start)
            if kind == "arrow":
                reads.append(ray.get(reader.read.remote([ref])))
            del ref
    put = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "benchmark": "transport",
        "table_mb": round(size_mb, 1),
        "put_mb_per_s": round(size_mb / put["arrow"]),
        "numpy_put_mb_per_s": round(size_mb / put["numpy"]),
        "get_ms": round(1e3 * statistics.median(r["get_s"] for r in reads), 2),
        "view_ms": round(1e3 * statistics.median(r["view_s"] for r in reads), 2),
        "zero_copy": all(r["zero_copy"] for r in reads),
        "address": reads[-1]["address"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=80, help="images in the group")
    parser.add_argument("--repeats", type=int, default=5, help="times the table is sent")
    arguments = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        print(json.dumps(measure(arguments.images, arguments.repeats)))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
