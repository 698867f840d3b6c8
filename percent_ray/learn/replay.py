"""Replay of stored trajectories: which images a rank takes, and the loss of a micro-batch of them.

Every image counts the same: a micro-batch's loss is a sum over its transitions divided by the
number of transitions of the whole chunk, on all ranks. So gradients and metrics do not depend on
how a chunk was cut into ranks and micro-batches.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from percent_ray.data import arrow
from percent_ray.flow.noise import generator
from percent_ray.flow.sde import Transition, transition
from percent_ray.learn.engine import Engine
from percent_ray.learn.reference import Reference
from percent_ray.models.base import Condition, Policy
from percent_ray.objective.grpo import RatioMetrics, Weights, stack, transition_loss
from percent_ray.recipe.tree import Recipe
from percent_ray.types import ShapedBatch

SUMS = ("count", "loss", "kl", "ratio", "clip_low", "clip_high", "approx_kl")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank replays at once, on its device: B images over their S trained steps."""

    latents: Float[Tensor, "B S+1 C H W"]
    """In the storage dtype."""
    old_log_probs: Float32[Tensor, "B S"]
    means: Float[Tensor, "B S C H W"] | None
    """Of the old policy, where a weight asks for them."""
    weights: Weights
    """Every weight [B, S]."""
    first: Int64[Tensor, " B"]
    """Each image's first trained step."""
    condition: Condition
    """Every tensor [B, ...]."""
    padding: bool
    """Replayed with weight 0, so that all ranks have the same number of micro-batches."""


class Tally:
    """Sums over replayed transitions, kept on their device so that counting waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        """By `SUMS`."""
        self.deviation = torch.zeros(1, dtype=torch.float64, device=device)
        """Largest |ratio - 1|."""

    def add(self, ratio: RatioMetrics, *, loss: Tensor, kl: Tensor | None) -> None:
        """Count the transitions of one step of a micro-batch: losses, KLs to the reference, [B]."""
        self.sums += torch.stack(
            [
                ratio.count.double(),
                loss.detach().double().sum(),
                torch.zeros_like(ratio.ratio_sum) if kl is None else kl.detach().double().sum(),
                ratio.ratio_sum,
                ratio.clip_low_sum,
                ratio.clip_high_sum,
                ratio.approx_kl_sum,
            ]
        )
        self.deviation = torch.maximum(self.deviation, ratio.ratio_deviation_max)


class Images:
    """The trained images of a batch, numbered through all its groups, read in place from the
    groups' tables, which the rows hold.

    Raises ValueError for groups with different numbers of trained steps, and for a payload whose
    rows are not as many as its weights.
    """

    def __init__(self, batch: ShapedBatch) -> None:
        self._latents: list[Tensor] = []
        self._means: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._conditions: list[Condition] = []
        self._first: list[int] = []
        self._weights = [row.weights for row in batch.rows]
        self._index: list[tuple[int, int]] = []
        """(group, image in the group)."""
        for group, row in enumerate(batch.rows):
            payload: pa.Table = row.payload
            images = len(row.weights.advantage)
            if payload.num_rows != images:
                raise ValueError(
                    f"group {row.group_id} has {payload.num_rows} images and weights of {images}"
                )
            self._latents.append(arrow.column(payload, "latents"))
            self._means.append(arrow.column(payload, "means"))
            self._log_probs.append(arrow.column(payload, "log_probs"))
            self._conditions.append(arrow.unpack(row.condition))
            self._first.append(arrow.steps(payload).start)
            self._index += [(group, image) for image in range(images)]
        counts = {log_probs.shape[1] for log_probs in self._log_probs}
        if len(counts) > 1:
            raise ValueError(f"groups of one step have {sorted(counts)} trained steps")
        self.steps = counts.pop() if counts else 0
        """Trained steps S of every image."""

    def __len__(self) -> int:
        return len(self._index)

    @property
    def referred(self) -> bool:
        """Whether the loss has a KL to the reference policy."""
        return any(weights.kl_reference is not None for weights in self._weights)

    def take(self, numbers: Sequence[int], device: torch.device, *, padding: bool) -> MicroBatch:
        """The images of `numbers`; only they are copied, and only what a replay reads."""
        rows = [self._index[number] for number in numbers]
        groups = [group for group, _ in rows]

        def taken(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack([tensors[g][k] for g, k in rows]).to(device)

        chosen = [self._weights[g].map(lambda weight, k=k: weight[k]) for g, k in rows]
        weights = stack(chosen).map(lambda weight: weight.to(device))
        return MicroBatch(
            latents=taken(self._latents),
            old_log_probs=taken(self._log_probs),
            means=None if weights.kl_old is None else taken(self._means),
            weights=weights,
            first=torch.tensor([self._first[g] for g in groups]),
            condition={
                name: torch.cat([self._conditions[g][name] for g in groups]).to(device)
                for name in self._conditions[groups[0]]
            },
            padding=padding,
        )


def chunks(total: int, updates: int, *, seed: int, version: int) -> list[list[int]]:
    """The images of each optimizer step of the learner step after `version`: a permutation of all
    of them, the same on every rank, cut into `updates` parts as equal as can be; empty parts are
    left out."""
    order = torch.randperm(total, generator=generator("update", seed, version))
    parts = torch.tensor_split(order, updates)
    return [part.tolist() for part in parts if len(part)]


def micro_batches(
    chunk: Sequence[int], *, rank: int, world: int, size: int
) -> Iterator[tuple[list[int], bool]]:
    """A rank's share of a chunk in micro-batches of at most `size` images, and whether one is
    padding. Every rank gets the same number of them; one that has run out of images replays the
    chunk's first with weight 0, as ZeRO's collective calls wait for all ranks.
    """
    share = list(chunk[rank::world])
    largest = math.ceil(len(chunk) / world)
    for first in range(0, largest, size):
        images = share[first : first + size]
        yield (images, False) if images else ([chunk[0]], True)


class Replay:
    """The loss of stored transitions under the policy's present weights (arXiv 2605.12112, eqs.
    1-6)."""

    def __init__(self, recipe: Recipe, policy: Policy, reference: Reference) -> None:
        self._policy = policy
        self._reference = reference
        self._objective = recipe.objective
        self._sampling = recipe.sampling
        self._sigmas = policy.sigmas(recipe.sampling.steps)

    def loss(self, batch: MicroBatch, step: int, tally: Tally, *, transitions: int) -> Tensor:
        """Of the `step`-th trained step of a micro-batch, as its part of the mean over
        `transitions`.

        A 0-d float32 tensor with gradients. Adds what is not padding to `tally`.
        """
        referred = batch.weights.kl_reference is not None
        reference = self._referred(batch, step) if referred else None
        loss, ratio, kl = transition_loss(
            self._transition(batch, step),
            batch.latents[:, step + 1],
            batch.old_log_probs[:, step],
            batch.weights.map(lambda weight: weight[:, step]),
            clip_low=self._objective.clip_low,
            clip_high=self._objective.clip_high,
            old_mean=None if batch.means is None else batch.means[:, step],
            reference=reference,
            kl_form=self._objective.kl_form,
        )
        if batch.padding:
            return 0.0 * loss.sum()
        tally.add(ratio, loss=loss, kl=kl)
        return loss.sum() / transitions

    @torch.no_grad()
    def _referred(self, batch: MicroBatch, step: int) -> Transition:
        with self._reference():
            return self._transition(batch, step)

    def _transition(self, batch: MicroBatch, step: int) -> Transition:
        latents = batch.latents[:, step].float()
        number = batch.first + step
        sigma, sigma_next = self._sigmas[number], self._sigmas[number + 1]
        velocity = self._policy.velocity(latents, sigma.to(latents.device), batch.condition)
        return transition(
            velocity,
            latents,
            sigma,
            sigma_next,
            sigma_second=self._sigmas[1],
            noise_level=self._sampling.noise_level,
            kind=self._sampling.kind,
        )


def metrics(tallies: Sequence[Tally], engine: Engine, *, referred: bool) -> dict[str, float]:
    """Means and maxima over all transitions of a learner step, one tally for each of its optimizer
    steps, over all ranks. `referred` says whether the loss has a KL to the reference.

    `ratio/first_max_dev` is that of the first optimizer step, where the weights are still those of
    the batch's version: 0 but for rounding when they have drawn the batch themselves.
    """
    total = torch.stack([tally.sums for tally in tallies]).sum(0)
    sums = dict(zip(SUMS, engine.all_reduce(total, "sum").tolist(), strict=True))
    deviations = torch.cat([tally.deviation for tally in tallies])
    largest = engine.all_reduce(deviations, "max").tolist()
    count = sums.pop("count")
    mean = {name: value / count for name, value in sums.items()}
    reference = {"kl/reference": mean["kl"]} if referred else {}
    return reference | {
        "loss/total": mean["loss"],
        "kl/approx": mean["approx_kl"],
        "ratio/mean": mean["ratio"],
        "ratio/max_dev": max(largest),
        "ratio/first_max_dev": largest[0],
        "ratio/clip_low": mean["clip_low"],
        "ratio/clip_high": mean["clip_high"],
    }
