"""The learner group: Ray Train workers under DeepSpeed ZeRO, fed through a mailbox actor.

The driver gives numbered orders; every rank fetches each one and answers it. Rank 0's answer comes
back as the return value of the mailbox's method. The published weights are written once, by rank 0
into its machine's object store, and everybody else has a reference: with rank 0 they are lost.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
import ray.train
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from percent_ray.recipe.tree import Recipe
from percent_ray.runtime.placement import GIB
from percent_ray.types import ShapedBatch, Update

if TYPE_CHECKING:
    from percent_ray.roles.learner import Learner

POLL_S = 30.0
"""A rank asks anew when no order came for this long, so that a dead mailbox is noticed."""


CLOSE_S = 30.0
"""Longest wait for ranks that are told to stop."""

Kind = Literal["publish", "update", "save", "stop"]


@dataclass(frozen=True, slots=True)
class Order:
    """One command to the group."""

    kind: Kind
    batch: ShapedBatch | None = None
    folder: str = ""


Answer = tuple[Update | None, str, ray.ObjectRef | None]
"""The update, and the published weights: their checksum and a reference to their Arrow table."""


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


def train_worker(config: Mapping[str, Any]) -> None:
    """One rank: load the policy, then carry out orders until `stop`."""
    from percent_ray.learn.zero import ZeroEngine
    from percent_ray.models.base import best_device, family
    from percent_ray.roles.learner import Learner

    recipe: Recipe = config["recipe"]
    mailbox: Any = config["mailbox"]
    policy = family(recipe.model.family).load_policy(
        recipe.model, seed=recipe.run.seed, device=best_device(), text=False
    )
    learner = Learner(recipe, policy, ZeroEngine(recipe.learner, policy))
    if config["resume"]:
        learner.load(Path(config["resume"]))
    rank = ray.train.get_context().get_world_rank()
    number = 0
    while True:
        order: Order | None = ray.get(mailbox.next.remote(number))
        if order is None:
            continue
        answer = _carry_out(learner, order)
        ray.get(mailbox.answer.remote(number, rank, answer))
        if order.kind == "stop":
            return
        number += 1


def _carry_out(learner: "Learner", order: Order) -> Answer:
    """Every rank carries an order out, since it may hold collective calls."""
    update = None
    if order.kind == "update":
        assert order.batch is not None
        update = learner.update(fetch(order.batch, learner.groups(order.batch)))
    elif order.kind == "save":
        learner.save(Path(order.folder))
    if order.kind in ("update", "publish"):
        weights, checksum = learner.publish()
        return update, checksum, None if weights is None else ray.put(weights)
    return update, "", None


def fetch(batch: ShapedBatch, groups: Sequence[int]) -> ShapedBatch:
    """The batch with the tables of these rows in the place of their references, and None in that
    of all others: what lies on another machine is pulled from there whole, by every rank that asks
    for it."""
    payloads = ray.get([batch.rows[number].payload for number in groups])
    conditions = ray.get([batch.rows[number].condition for number in groups])
    rows = [replace(row, payload=None, condition=None) for row in batch.rows]
    for number, payload, condition in zip(groups, payloads, conditions, strict=True):
        rows[number] = replace(rows[number], payload=payload, condition=condition)
    return replace(batch, rows=tuple(rows))


class LearnerGroup:
    """The driver's handle: starts the group (`start`), gives it orders, ends it."""

    def __init__(self, recipe: Recipe, *, run_folder: Path, resume: Path | None) -> None:
        self._timeout_s = recipe.runtime.timeout_s
        self._number = 0
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        role = recipe.runtime.learner
        self._mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote(role.workers)
        gpus = role.gpus
        resources = {"CPU": role.cpus, "GPU": gpus, "memory": role.memory_gb * GIB}
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "recipe": recipe,
                "mailbox": self._mailbox,
                "resume": str(resume or ""),
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=role.workers,
                use_gpu=gpus > 0,
                resources_per_worker={k: v for k, v in resources.items() if v},
            ),
            torch_config=TorchConfig(backend="nccl" if gpus > 0 else "gloo"),
            run_config=ray.train.RunConfig(
                name=f"{recipe.run.name}-{time.time_ns()}",
                storage_path=str((run_folder / "ray_train").absolute()),
            ),
        )
        loop = asyncio.get_running_loop()
        self._fit: asyncio.Future[Any] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(trainer, loop), daemon=True)

    def start(self) -> None:
        """Start the ranks. They are not waited for: the first order is."""
        self._thread.start()

    def _run(self, trainer: TorchTrainer, loop: asyncio.AbstractEventLoop) -> None:
        error: Exception | None = None
        try:
            trainer.fit()
        except WorkerGroupError as caught:
            # what the first rank raised says more than that a group failed
            error = next(iter(caught.worker_failures.values()), caught)
        except Exception as caught:
            error = caught

        def tell() -> None:
            if error is None:
                self._fit.set_result(None)
            else:
                self._fit.set_exception(error)
                self._fit.exception()  # marks it retrieved: `order` raises it where it matters

        with contextlib.suppress(RuntimeError):  # the driver's event loop is closed already
            loop.call_soon_threadsafe(tell)

    async def order(
        self,
        kind: Kind,
        *,
        batch: ShapedBatch | None = None,
        folder: str = "",
        timeout_s: float | None = None,
    ) -> Answer:
        """Carry out one order on every rank; returns rank 0's answer.

        Raises the group's own error when it has died, TimeoutError after `timeout_s`
        (`runtime.timeout_s` where None).
        """
        timeout_s = timeout_s or self._timeout_s
        given = self._mailbox.order.remote(self._number, Order(kind, batch, folder))
        self._number += 1
        answer = asyncio.ensure_future(asyncio.wrap_future(given.future()))
        done, _ = await asyncio.wait(
            {answer, self._fit}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if answer in done:
            return answer.result()
        answer.cancel()
        if not done:
            raise TimeoutError(
                f"the learner group did not finish {kind!r} in {timeout_s:g} s; "
                "set runtime.timeout_s higher, or look at the learner's logs"
            )
        self._fit.result()
        raise RuntimeError("the learner group ended before the run did")

    async def close(self) -> None:
        """Let every rank finish what it was ordered and return, then end the mailbox. A rank that
        has not returned after CLOSE_S ends with an error at its next call of the mailbox."""
        try:
            # One that has died, or does not answer, cannot be told to stop.
            with contextlib.suppress(Exception):
                if self._thread.is_alive():
                    await self.order("stop", timeout_s=CLOSE_S)
                    await asyncio.wait({self._fit}, timeout=CLOSE_S)
        finally:
            ray.kill(self._mailbox)
