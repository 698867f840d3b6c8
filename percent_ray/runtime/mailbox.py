"""The process between the driver and the ranks of the learner group: it holds their orders, and
owns Ray Train's controller, so that with it all of them end."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from percent_ray.recipe.tree import Recipe
from percent_ray.runtime import rank
from percent_ray.runtime.room import GIB
from percent_ray.types import ShapedBatch, Update

POLL_S = 30.0
"""A rank asks anew when no order came for this long."""

FINAL = (ValueError, FloatingPointError)
"""What a rank raises of data, weights and settings: another group would raise it again."""

Kind = Literal["publish", "update", "save", "stop"]


@dataclass(frozen=True, slots=True)
class Order:
    """One command to the group."""

    kind: Kind
    batch: ShapedBatch | None = None
    folder: str = ""


Answer = tuple[Update | rank.Lost | None, str, ray.ObjectRef | None]
"""The update, or what it lacks, and the published weights: their checksum and a reference to their
Arrow table."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended a group before it was told to stop."""

    what: str
    error: Exception


class Mailbox:
    """Holds the numbered orders of a group until each of its `ranks` ranks has carried them out.

    An order is never overwritten: one that nobody waits for any more is still carried out, by every
    rank, before the next, since it may hold collective calls.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._given = -1
        """The last number."""
        self._orders: dict[int, Order] = {}
        self._answers: dict[int, dict[int, Answer]] = {}
        self._changed = asyncio.Condition()

    async def fit(self, recipe: Recipe, *, run_folder: Path, resume: Path | None) -> Ended | None:
        """Run the ranks until they are told to stop; else what has ended them."""
        own = ray.get_runtime_context().current_actor
        config = {"recipe": recipe, "mailbox": own, "run_folder": str(run_folder)}
        config["resume"] = str(resume or "")
        return await asyncio.to_thread(_fit, recipe, config, run_folder / "ray_train")

    async def order(self, number: int, order: Order) -> Answer:
        """Give order `number`; returns rank 0's answer once all ranks have answered."""
        async with self._changed:
            self._given, self._orders[number] = number, order
            answers = self._answers[number] = {}
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(answers) == self._ranks)
            del self._orders[number], self._answers[number]
            return answers[0]

    async def next(self, number: int) -> Order | None:
        """Order `number`, or None where it has not come within POLL_S. Raises ValueError for one
        that is over: a rank that asks for it has started anew and can never catch up."""
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait_for(lambda: self._given >= number)
            if number <= self._given and number not in self._orders:
                raise ValueError(
                    f"order {number} is over, the group is at {self._given}; this rank has started "
                    "anew and cannot catch up"
                )
            return self._orders.get(number)

    async def answer(self, number: int, rank: int, answer: Answer) -> None:
        """A rank has carried out order `number`."""
        async with self._changed:
            self._answers[number][rank] = answer
            self._changed.notify_all()


def _fit(recipe: Recipe, config: Mapping[str, Any], storage: Path) -> Ended | None:
    """Ray Train's own call, which returns when every rank has."""
    role, most_s = recipe.runtime.learner, max(1, round(recipe.runtime.timeout_s))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(most_s))
    # A process less: nothing here asks whether a machine is about to be taken away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    resources = {"CPU": role.cpus, "GPU": role.gpus, "memory": role.memory_gb * GIB}
    trainer = TorchTrainer(
        rank.train_worker,
        train_loop_config=dict(config),
        scaling_config=ray.train.ScalingConfig(
            num_workers=role.workers,
            use_gpu=role.gpus > 0,
            resources_per_worker={k: v for k, v in resources.items() if v},
        ),
        torch_config=TorchConfig(
            backend="nccl" if role.gpus > 0 else "gloo",
            timeout_s=most_s,
        ),
        run_config=ray.train.RunConfig(
            name=f"{recipe.run.name}-{ray.get_runtime_context().get_actor_id()}",
            storage_path=str(storage.absolute()),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as caught:
        return _cause(caught)
    except Exception as caught:
        return Ended("Ray Train's controller died", caught)
    return None


def _cause(caught: WorkerGroupError) -> Ended:
    """Of the failures of all ranks the one that the others follow from: what a rank raises of its
    data, then a death; a rank whose collective broke off has lost another."""
    found = sorted(caught.worker_failures.items(), key=lambda item: _weight(item[1]))
    if not found:
        return Ended("the learner group failed", caught)
    number, error = found[0]
    died = isinstance(error, RayActorError)
    return Ended(f"learner rank {number} {'died' if died else 'failed'}", error)


def _weight(error: Exception) -> int:
    return 0 if isinstance(error, FINAL) else 1 if isinstance(error, RayActorError) else 2
