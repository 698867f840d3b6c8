"""How far rollout scales: groups a second of 1, 4, 16 and 64 rollout actors against the ideal.

    python benchmarks/scale.py [--workers 1 4 16 64] [--steps 5] [--images 24] [--store-gb 15]

The loop, the driver's cluster with its pools and slots, Ray, its object store and the Arrow tables
are the real ones, and so are the tables' sizes: SD3.5-M at 512 pixels, 63 MB a group of 24. Only
the models are stand-ins: they sleep for what a group took on one H100 in
`baselines/gpu_sd3_h100.json` (drawn, perceived as marginal PEC does, learned from), with as many
perception workers and learner ranks as keep up with the rollout. All of it is on this machine, so
that its cores copy what a cluster's machines would copy, each its own part.

Prints one JSON line for each number of workers: groups/s and the ideal, the driver's share of a
core, the most that the object store held, and the data plane's share of a step: what a rollout
actor does between two groups (its tables go into the store), the learner's fetch, and publishing
the LoRA's weights.
"""

import argparse
import asyncio
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch
from transport import table

from percent_ray.data import arrow
from percent_ray.data.prompts import PromptStream
from percent_ray.loop import Loop, Progress
from percent_ray.recipe import load as recipes
from percent_ray.recipe.tree import Recipe, Role
from percent_ray.runtime import cluster, rank
from percent_ray.runtime.pool import Pool
from percent_ray.types import Perception, Prompt, ShapedBatch, Span, Trajectory, Update

HERE = Path(__file__).parent
BASELINE = json.loads((HERE / "baselines" / "gpu_sd3_h100.json").read_text())
SAMPLE_S, PERCEIVE_S, UPDATE_S = (
    BASELINE["sample_s"],
    BASELINE["perceive_s"]["marginal"],
    BASELINE["update_s"],
)
"""Of a group of 24, on one H100."""
GROUPS = 1.5
"""In a step, for each rollout worker."""
PERCEIVES, LEARNS = 0.8, 0.25
"""Of the time that a step's sampling takes, what perception and an update need. A step is complete
when its last group is drawn, a whole group's time after that one was begun: what is left of a step
until no group of the next one is left to begin is the update's."""
STEPS = 9
LORA = 18_776_064
"""Trained weights of SD3.5-M's LoRA of rank 32, float32."""


class StandIn:
    """A worker without a model, and without torch: 64 of them have to fit into one machine."""

    def __init__(self, worker: str, workers: int, settings: Mapping[str, Any]) -> None:
        self.worker, self.workers, self.settings = worker, workers, settings

    def ready(self) -> list[str]:
        return []

    def try_out(self, first: Prompt) -> None:
        pass


class Rollout(StandIn):
    """Actors begin one after the other: in step, 64 of them would copy on two cores at once what 64
    machines copy each for itself."""

    def ready(self) -> list[str]:
        self.table, self.condition = ray.get(self.settings["tables"])
        self.begun = False
        return []

    def draw(
        self, group_id: int, prompt: Prompt, version: int, *weights: Any
    ) -> tuple[Trajectory, pa.Table | None, pa.Table]:
        if not self.begun:
            time.sleep(SAMPLE_S * int(self.worker.split("-")[1]) / self.workers)
            self.begun = True
        start = time.time()
        time.sleep(SAMPLE_S)
        ones = np.ones(STEPS, np.float32)
        span = Span("sample", self.worker, start, time.time(), group_id)
        group = Trajectory(
            group_id, prompt, version, range(STEPS), ones, ones, (), None, None, span
        )
        return group, self.table, self.condition


class Perceive(StandIn):
    def judge(self, group: Trajectory, payload: pa.Table, *, pictures: bool) -> Perception:
        start = time.time()
        images = payload.num_rows
        time.sleep(self.settings["perceive_s"])
        rewards = np.random.default_rng(group.group_id).random(images, np.float32)
        return Perception(
            group_id=group.group_id,
            rewards={"pickscore": rewards},
            log_p_perc={},
            log_p_policy=np.zeros((images, STEPS), np.float32),
            features={},
            variance={},
            thumbnails=None,
            failures={},
            dropped=False,
            span=Span("perceive", self.worker, start, time.time(), group.group_id),
        )


@ray.remote(num_cpus=0)
class Learner:
    """All ranks in one: fetches every table of a step."""

    def __init__(self, update_s: float) -> None:
        self.update_s = update_s
        self.weights = {"lora": torch.zeros(LORA)}

    def publish(self) -> tuple[None, str, list[ray.ObjectRef]]:
        return None, arrow.checksum(self.weights), [ray.put(arrow.pack(self.weights))]

    def update(self, batch: ShapedBatch) -> tuple[Update, str, list[ray.ObjectRef]]:
        start = time.time()
        fetched, lost = rank.fetch(batch, range(len(batch.rows)))
        assert not lost
        assert all(row.payload.num_rows for row in fetched.rows)
        fetch_s = time.time() - start
        time.sleep(self.update_s)
        span = Span("update", "learner-0", start, time.time())
        start = time.time()
        _, checksum, weights = self.publish()
        metrics = {"fetch_s": fetch_s, "publish_s": time.time() - start}
        return Update(batch.version + 1, metrics, span), checksum, weights


def pool(
    settings: Mapping[str, Any], _: type, recipe: Recipe, role: Role, *, name: str, say: Any
) -> Pool:
    """In the place of the cluster's own: the same pool, of stand-ins."""
    kind: Any = ray.remote(num_cpus=0)({"rollout": Rollout, "perception": Perceive}[name])
    return Pool(
        lambda number: kind.remote(f"{name}-{number}", role.workers, settings),
        role.workers,
        name=name,
        inflight=recipe.runtime.inflight,
        timeout_s=recipe.runtime.timeout_s,
        setting="runtime.timeout_s",
        say=say,
    )


class Group:
    """In the place of `LearnerGroup`."""

    update_s = 0.0

    def __init__(self, recipe: Recipe, **files: Any) -> None:
        self.actor: Any = Learner.remote(Group.update_s)

    def start(self) -> None:
        pass

    async def order(self, kind: str, *, batch: ShapedBatch | None = None, folder: str = "") -> Any:
        if kind == "save":
            return None
        answer = self.actor.publish.remote() if batch is None else self.actor.update.remote(batch)
        update, checksum, [weights] = await asyncio.wrap_future(answer.future())
        return update, checksum, weights

    async def close(self) -> None:
        ray.kill(self.actor)


class Record:
    """`loop.Observer` and the checkpoint: keeps what is measured from the second step on."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, float]] = []
        self.spans: list[Span] = []
        self.store_gb = 0.0
        self.began: tuple[float, float] | None = None

    def step(self, step: int, metrics: Mapping[str, float], spans: Sequence[Span]) -> None:
        if self.began is None:
            self.began = time.time(), sum(psutil.Process().cpu_times()[:2])
            return
        self.metrics.append(metrics)
        self.spans.extend(spans)

    def failed(self, step: int, groups: Sequence[Mapping[str, str]]) -> None:
        assert not any(groups), groups

    def probe(
        self, version: int, metrics: Mapping[str, float], pictures: Sequence[tuple[str, Any]]
    ) -> None:
        pass

    async def checkpoint(self, progress: Progress) -> None:
        pass

    async def watch(self) -> None:
        """The most that the object store held, looked at once a second."""
        while True:
            whole, left = ray.cluster_resources(), ray.available_resources()
            name = "object_store_memory"
            self.store_gb = max(self.store_gb, (whole[name] - left.get(name, 0.0)) / 1e9)
            await asyncio.sleep(1)


def settings(workers: int, *, steps: int, images: int, perceive_s: float) -> Recipe:
    perception = math.ceil(workers * perceive_s / SAMPLE_S / PERCEIVES)
    changes = {
        "method.name": "flow_grpo",
        "sampling.group_size": images,
        "data.groups_per_step": math.ceil(GROUPS * workers),
        "run.steps": steps + 1,
        "run.checkpoint_every": steps + 1,
        "monitor.probe_every": 0,
        "monitor.spaces": "[]",
        "perceptual.measure": "false",
        "runtime.rollout": f"{{workers: {workers}, cpus: 0, gpus: 0}}",
        "runtime.perception": f"{{workers: {perception}, cpus: 0, gpus: 0}}",
        "runtime.learner": "{workers: 1, cpus: 0, gpus: 0}",
        "runtime.inflight": 2,
    }
    flags = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    return recipes.load(HERE.parent / "jobs/recipes/sd35_medium_pickscore_pec.yaml", flags)


async def train(recipe: Recipe, record: Record, folder: Path) -> None:
    prompts = [Prompt("a photo of a bench")]
    roles = await cluster.Cluster.start(recipe, first=prompts[0], run_folder=folder, resume=None)
    watching = asyncio.create_task(record.watch())
    try:
        await Loop(
            recipe,
            roles,
            stream=PromptStream(prompts, seed=0),
            probes=(),
            observer=record,
            checkpoint=record.checkpoint,
            progress=Progress(),
        ).run()
    finally:
        watching.cancel()
        await roles.close()


def between(spans: Sequence[Span]) -> float:
    """Median seconds from a rollout actor's end of a group to its begin of the next."""
    gaps: list[float] = []
    for worker in {span.worker for span in spans if span.stage == "sample"}:
        drawn = [s for s in spans if (s.stage, s.worker) == ("sample", worker)]
        own = sorted(drawn, key=lambda span: span.start)
        gaps += [after.start - before.stop for before, after in pairwise(own)]
    return statistics.median(gaps)


def measure(
    workers: int, *, steps: int, images: int, store_gb: float, perceive_s: float = PERCEIVE_S
) -> dict[str, Any]:
    """What `workers` rollout actors reach, in a cluster of its own."""
    recipe = settings(workers, steps=steps, images=images, perceive_s=perceive_s)
    record, groups = Record(), recipe.data.groups_per_step
    Group.update_s = LEARNS * groups * SAMPLE_S / workers
    ranks = math.ceil(groups * UPDATE_S / Group.update_s)
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=int(store_gb * 1e9),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    condition = arrow.pack({"prompt": torch.zeros(333, 4096).half()})
    tables = [ray.put(table(images)), ray.put(condition)]
    cluster._pool = partial(pool, {"tables": tables, "perceive_s": perceive_s})
    cluster.LearnerGroup = Group
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(train(recipe, record, Path(folder)))
    finally:
        ray.shutdown()
    assert record.began is not None
    start, cpu = record.began
    seconds = sum(m["time/step_s"] for m in record.metrics)
    driver = (sum(psutil.Process().cpu_times()[:2]) - cpu) / (time.time() - start)
    rate, ideal = groups * len(record.metrics) / seconds, workers / SAMPLE_S
    step_s = seconds / len(record.metrics)
    shares = {
        "store": between(record.spans) / SAMPLE_S,
        "fetch": statistics.median(m["fetch_s"] for m in record.metrics) / step_s,
        "publish": statistics.median(m["publish_s"] for m in record.metrics) / step_s,
    }
    return {
        "benchmark": "scale",
        "workers": workers,
        "perception_workers": recipe.runtime.perception.workers,
        "learner_ranks": ranks,
        "group_mb": round(table(images).nbytes / 1e6, 1),
        "step_s": round(step_s, 3),
        "groups_per_s": round(rate, 3),
        "ideal": round(ideal, 3),
        "of_ideal": round(rate / ideal, 3),
        "driver_cores": round(driver, 3),
        "store_gb": round(record.store_gb, 2),
        "data_plane": {name: round(share, 4) for name, share in shares.items()},
        "data_plane_share": round(sum(shares.values()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=5, help="measured steps, behind a first one")
    parser.add_argument("--images", type=int, default=24, help="of a group")
    parser.add_argument("--store-gb", type=float, default=15.0, help="of the object store")
    args = parser.parse_args()
    for workers in args.workers:
        found = measure(workers, steps=args.steps, images=args.images, store_gb=args.store_gb)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
