"""The forward process: flow matching on finished images, weighted by their advantages."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.flow import noise, schedule
from percent_ray.learn.batch import MicroBatch
from percent_ray.learn.old import Old
from percent_ray.learn.process import DEVIATION, RATIO, Tally, floor_of, sums_of
from percent_ray.learn.reference import Reference
from percent_ray.models.base import Condition, Policy
from percent_ray.objective import forward
from percent_ray.recipe.tree import Recipe
from percent_ray.types import ShapedBatch

MEANS = ("loss/total", "kl/reference", "loss/matching", "velocity/moved")
"""`velocity/moved`: how far the trained velocity is from the old one, mean square."""
FARTHEST = "velocity/moved_max"
"""Its largest; in the first optimizer step 0 where the trained weights are the old ones, whoever
has drawn the images."""

Noised = tuple[Float32[Tensor, "B C H W"], Float32[Tensor, "B C H W"], Float32[Tensor, " B"]]
"""Noised latents x_t, the velocity eps - x_0 there, and the times t."""


class Forward:
    """The loss of finished images, noised afresh (`objective/forward.py`); `learn.process.Process`.

    Times and noises are functions of (run seed, group id, image): learned from anywhere, in any
    micro-batch, they are the same.
    """

    def __init__(self, recipe: Recipe, policy: Policy, reference: Reference, old: Old) -> None:
        self._policy = policy
        self._reference = reference
        self._old = old
        self._recipe = recipe
        self._has_ratio = recipe.forward.loss == "awm"
        sampling = recipe.sampling
        self._schedule = None
        self._count = recipe.forward.times
        if recipe.forward.distribution == "schedule":
            trained = schedule.trained_steps(sampling.steps, fraction=sampling.train_fraction)
            self._schedule = policy.sigmas(sampling.steps)[:-1]
            self._count = self._count or len(trained)

    def columns(self, batch: ShapedBatch) -> Sequence[str]:
        """The finished latents. Raises ValueError for weights of transitions."""
        for row in batch.rows:
            if extra := row.weights.present().keys() - {"advantage", "kl_reference"}:
                raise ValueError(
                    f"weights of transitions ({', '.join(sorted(extra))}) in the forward process, "
                    "which has none; set learner.process reverse"
                )
        return ("final",)

    def begin(self, later: Iterator[MicroBatch]) -> None:
        """The old policy's weights are kept: nothing has to be taken before they change."""

    def check(self, first: Mapping[str, float], *, strict: bool) -> Mapping[str, float]:
        """The floor of AWM's ratio, whose old velocity is taken without gradients: other kernels
        may run then. NFT has none."""
        if not self._has_ratio:
            return {}
        same = "model.compile false" if self._recipe.model.compile else "model.dtype float32"
        why = "velocities with and without gradients round differently, by more"
        return floor_of(first, self._recipe.objective, strict=strict, why=why, instead=same)

    def tally(self, device: torch.device) -> Tally:
        if not self._has_ratio:
            return Tally(device, sums=MEANS, largest=[FARTHEST])
        return Tally(device, sums=[*MEANS, *RATIO], largest=[FARTHEST, DEVIATION])

    def passes(self, steps: int) -> int:
        return self._count

    def losses(self, batch: MicroBatch, tally: Tally) -> Iterator[Float32[Tensor, ""]]:
        """Of every fresh noise. The old policy's velocities at all of them come first, and the
        reference's, so that weights are exchanged once a micro-batch."""
        drawn = list(self._noised(batch))
        olds = self._velocities(self._old, drawn, batch.condition)
        referred = batch.weights.kl_reference is not None
        references = self._velocities(self._reference, drawn, batch.condition) if referred else olds
        for (latents, target, time), old, reference in zip(drawn, olds, references, strict=True):
            velocity = self._policy.velocity(latents, time, batch.condition)
            loss = self._loss(batch, velocity, old, reference, target, time, tally)
            yield 0.0 * loss.sum() if batch.padding else loss.sum()

    def _loss(
        self,
        batch: MicroBatch,
        velocity: Tensor,
        old: Tensor,
        reference: Tensor,
        target: Tensor,
        time: Tensor,
        tally: Tally,
    ) -> Float32[Tensor, " B"]:
        weights, settings = batch.weights.map(lambda weight: weight[:, 0]), self._recipe.forward
        objective, ratio = self._recipe.objective, None
        if not self._has_ratio:
            loss = forward.nft_loss(
                velocity,
                old,
                target,
                time,
                weights.advantage,
                beta=settings.beta,
                clip=objective.advantage_clip,
            )
        else:
            loss, ratio = forward.awm_loss(
                velocity,
                old,
                target,
                weights.advantage,
                clip_low=objective.clip_low,
                clip_high=objective.clip_high,
            )
        moved = forward.mean_square(velocity.detach() - old)
        kl = torch.zeros_like(moved)
        if weights.kl_reference is not None:
            kl = forward.mean_square(velocity - reference)
            loss = loss + weights.kl_reference * kl
        if not batch.padding:
            matching = forward.mean_square(velocity.detach() - target)
            values = zip(MEANS, (loss, kl, matching, moved), strict=True)
            sums = {name: value.double().sum() for name, value in values}
            largest = {FARTHEST: moved.amax()}
            if ratio is not None:
                sums |= sums_of(ratio)
                largest |= {DEVIATION: ratio.ratio_deviation_max}
            tally.add(len(loss), sums, largest)
        return loss

    @torch.no_grad()
    def _velocities(
        self,
        whose: Old | Reference,
        drawn: Sequence[Noised],
        condition: Condition,
    ) -> list[Tensor]:
        """Those of the old policy, or of the reference, at every fresh noise."""
        with whose():
            return [self._policy.velocity(latents, time, condition) for latents, _, time in drawn]

    def _times(self, group: int, image: int) -> Float32[Tensor, " n"]:
        return forward.draw_times(
            self._schedule,
            count=self._count,
            shift=self._recipe.forward.shift,
            source=noise.generator("forward_times", self._recipe.run.seed, group, image),
        )

    def _noised(self, batch: MicroBatch) -> Iterator[Noised]:
        """The images under each of their fresh noises."""
        clean, seed = batch.columns["final"].float(), self._recipe.run.seed
        times = torch.stack([self._times(group, image) for group, image in batch.ids])
        for number, time in enumerate(times.T.to(clean.device)):
            fresh = [
                noise.noise(seed, group, image, number, clean.shape[1:], stream="forward_noise")
                for group, image in batch.ids
            ]
            eps = torch.stack(fresh).to(clean.device)
            yield forward.noised(clean, eps, time), eps - clean, time
