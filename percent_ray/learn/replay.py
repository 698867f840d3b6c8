"""The reverse process: the replay of stored trajectories under the policy's present weights."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.flow.sde import Transition, transition
from percent_ray.learn.batch import MicroBatch
from percent_ray.learn.process import Tally
from percent_ray.learn.reference import Reference
from percent_ray.models.base import Policy
from percent_ray.objective.grpo import transition_loss
from percent_ray.recipe.tree import Recipe
from percent_ray.types import ShapedBatch

MEANS = (
    "loss/total",
    "kl/reference",
    "kl/approx",
    "ratio/mean",
    "ratio/clip_low",
    "ratio/clip_high",
)
DEVIATION = "ratio/max_dev"
"""Largest |ratio - 1|; in the first optimizer step 0 but for rounding, where the weights have drawn
the batch themselves."""


class Replay:
    """The loss of stored transitions (arXiv 2605.12112, eqs. 1-6); `learn.process.Process`."""

    def __init__(self, recipe: Recipe, policy: Policy, reference: Reference) -> None:
        self._policy = policy
        self._reference = reference
        self._objective = recipe.objective
        self._sampling = recipe.sampling
        self._sigmas = policy.sigmas(recipe.sampling.steps)

    def columns(self, batch: ShapedBatch) -> Sequence[str]:
        """The means only where a weight asks for them."""
        asked = any(row.weights.kl_old is not None for row in batch.rows)
        return ("latents", "log_probs", "means") if asked else ("latents", "log_probs")

    def tally(self, device: torch.device) -> Tally:
        return Tally(device, sums=MEANS, largest=[DEVIATION])

    def passes(self, steps: int) -> int:
        return steps

    def losses(self, batch: MicroBatch, tally: Tally) -> Iterator[Float32[Tensor, ""]]:
        """Of every trained step, in order."""
        for step in range(batch.weights.advantage.shape[1]):
            yield self._loss(batch, step, tally)

    def _loss(self, batch: MicroBatch, step: int, tally: Tally) -> Float32[Tensor, ""]:
        weights = batch.weights.map(lambda weight: weight[:, step])
        # Before the policy's own pass: ZeRO 3 writes other weights into what that pass has saved.
        reference = None if weights.kl_reference is None else self._referred(batch, step)
        loss, ratio, kl = transition_loss(
            self._transition(batch, step),
            batch.columns["latents"][:, step + 1],
            batch.columns["log_probs"][:, step],
            weights,
            clip_low=self._objective.clip_low,
            clip_high=self._objective.clip_high,
            old_mean=None if weights.kl_old is None else batch.columns["means"][:, step],
            reference=reference,
            kl_form=self._objective.kl_form,
        )
        if batch.padding:
            return 0.0 * loss.sum()
        sums = {
            "loss/total": loss.double().sum(),
            "kl/reference": torch.zeros_like(ratio.ratio_sum) if kl is None else kl.double().sum(),
            "kl/approx": ratio.approx_kl_sum,
            "ratio/mean": ratio.ratio_sum,
            "ratio/clip_low": ratio.clip_low_sum,
            "ratio/clip_high": ratio.clip_high_sum,
        }
        tally.add(len(loss), sums, {DEVIATION: ratio.ratio_deviation_max})
        return loss.sum()

    @torch.no_grad()
    def _referred(self, batch: MicroBatch, step: int) -> Transition:
        with self._reference():
            return self._transition(batch, step)

    def _transition(self, batch: MicroBatch, step: int) -> Transition:
        latents = batch.columns["latents"][:, step].float()
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
