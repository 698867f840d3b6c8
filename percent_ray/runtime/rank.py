"""One rank of the learner group, as Ray Train runs it: carries out the orders of the mailbox."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from percent_ray.types import ShapedBatch

if TYPE_CHECKING:
    from percent_ray.recipe.tree import Recipe
    from percent_ray.roles.learner import Learner
    from percent_ray.runtime.mailbox import Answer, Order


def train_worker(config: Mapping[str, Any]) -> None:
    """Load the policy, then carry out orders until `stop`."""
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
