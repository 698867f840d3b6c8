"""One rank of the learner group, as Ray Train runs it: carries out the orders of the mailbox."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import ObjectLostError

from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.types import ShapedBatch

if TYPE_CHECKING:
    from percent_ray.recipe.tree import Recipe
    from percent_ray.roles.learner import Learner
    from percent_ray.runtime.mailbox import Answer, Order


@dataclass(frozen=True, slots=True)
class Lost:
    """Groups whose tables are gone with the machine that they were on. Nothing was learned."""

    groups: tuple[int, ...]


def train_worker(config: Mapping[str, Any]) -> None:
    """Load the policy, then carry out orders until `stop`. Raises ValueError, before anything is
    loaded, where this machine does not see the run's folder, which checkpoints go into."""
    folder = Path(config["run_folder"])
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(
            f"the learner's machine {socket.gethostname()} does not see the run's folder {folder}; "
            "set run.folder to a folder that all machines share"
        )
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


def _carry_out(learner: "Learner", order: "Order") -> "Answer":
    """Every rank carries an order out, since it may hold collective calls."""
    update = None
    if order.kind == "update":
        assert order.batch is not None
        batch, lost = fetch(order.batch, learner.groups(order.batch))
        lost = learner.agree(lost, len(batch.rows))
        if lost:  # before any rank has begun
            return Lost(tuple(batch.rows[number].group_id for number in lost)), "", None
        update = learner.update(batch)
    elif order.kind == "save":
        learner.save(Path(order.folder))
    if order.kind in ("update", "publish"):
        weights, checksum = learner.publish()
        return update, checksum, None if weights is None else ray.put(weights)
    return update, "", None


def fetch(batch: ShapedBatch, groups: Sequence[int]) -> tuple[ShapedBatch, list[int]]:
    """The batch with the tables of these rows in the place of their references, and None in that
    of all others: what lies on another machine is pulled from there whole, by every rank that asks
    for it. And the numbers of the rows that are lost with a machine."""
    refs = [(batch.rows[number].payload, batch.rows[number].condition) for number in groups]
    try:
        flat = ray.get([ref for pair in refs for ref in pair])
        found: list[tuple[Any, Any] | None] = list(zip(flat[::2], flat[1::2], strict=True))
    except ObjectLostError:
        found = [_either(pair) for pair in refs]
    rows = [replace(row, payload=None, condition=None) for row in batch.rows]
    lost: list[int] = []
    for number, tables in zip(groups, found, strict=True):
        if tables is None:
            lost.append(number)
        else:
            rows[number] = replace(rows[number], payload=tables[0], condition=tables[1])
    return replace(batch, rows=tuple(rows)), lost


def _either(refs: tuple[ray.ObjectRef, ray.ObjectRef]) -> tuple[Any, Any] | None:
    """Both tables of a row; None where one is lost."""
    try:
        payload, condition = ray.get(list(refs))
    except ObjectLostError:
        return None
    return payload, condition
