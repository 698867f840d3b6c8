"""The reverse process: the replay of stored trajectories under the policy's present weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.flow.sde import Transition, transition
from percent_ray.learn.batch import MicroBatch
from percent_ray.learn.process import DEVIATION, RATIO, Tally, floor_of, sums_of
from percent_ray.learn.reference import Reference
from percent_ray.models.base import Policy
from percent_ray.objective.grpo import transition_loss
from percent_ray.objective.step_weights import step_weight
from percent_ray.recipe.tree import Recipe
from percent_ray.types import ShapedBatch

MEANS = ("loss/total", "kl/reference", *RATIO)


class Replay:
    """The loss of stored transitions (arXiv 2605.12112, eqs. 1-6); `learn.process.Process`."""

    def __init__(self, recipe: Recipe, policy: Policy, reference: Reference) -> None:
        self._policy = policy
        self._reference = reference
        self._objective = recipe.objective
        self._sampling = recipe.sampling
        self._sigmas = policy.sigmas(recipe.sampling.steps)
        self._own = recipe.objective.old_log_prob == "replayed"
        self._kl_steps = recipe.objective.kl_steps
        self._compiled = recipe.model.compile
        self._old: dict[tuple[int, int], Float32[Tensor, " S"]] = {}
        """Old log-probs by image, replayed before the first optimizer step, which needs none."""

    def columns(self, batch: ShapedBatch) -> Sequence[str]:
        """The means only where a weight or the ratio asks for them."""
        asked = self._objective.ratio == "guard"
        asked = asked or any(row.weights.kl_old is not None for row in batch.rows)
        return ("latents", "log_probs", "means") if asked else ("latents", "log_probs")

    def begin(self, later: Iterator[MicroBatch]) -> None:
        """Take their old log-probs at these batch shapes, where the recipe asks for it."""
        self._old.clear()
        for batch in later if self._own else ():
            steps = range(batch.weights.advantage.shape[1])
            # With gradients, as they will be learned from: without them other kernels may run,
            # which round otherwise, in compiled blocks and not only there.
            found = [self._log_prob(batch, step).detach() for step in steps]
            if not batch.padding:  # a pass of another size over an image that has its own
                self._old |= zip(batch.ids, torch.stack(found, dim=1), strict=True)

    def check(self, first: Mapping[str, float], *, strict: bool) -> Mapping[str, float]:
        """The ratio's floor: how far rounding alone moves it. Raises ValueError where `strict` and
        that is more than half of the clip range."""
        same = "model.compile false" if self._compiled else "model.dtype float32"
        stored = self._sampling.storage_dtype
        if self._objective.ratio == "guard" and stored != "float32":
            why = f"GRPO-Guard's means are stored in {stored}, whose rounding is more"
            instead = f"sampling.storage_dtype float32, {same}"
            return floor_of(first, self._objective, strict=strict, why=why, instead=instead)
        return floor_of(
            first,
            self._objective,
            strict=strict,
            why="draw and replay round differently, by more",
            instead=f"objective.old_log_prob replayed, {same}",
        )

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
        if self._kl_steps and step >= self._kl_steps:
            weights = replace(weights, kl_reference=None)  # they are 0 for every image
        # Before the policy's own pass: ZeRO 3 writes other weights into what that pass has saved.
        reference = None if weights.kl_reference is None else self._referred(batch, step)
        steps = batch.weights.advantage.shape[1]
        held = min(self._kl_steps or steps, steps)
        policy, (sigma, sigma_next) = self._transition(batch, step), self._ends(batch, step)
        loss, ratio, kl = transition_loss(
            policy,
            _next(batch, step),
            self._old_log_prob(batch, step),
            weights,
            clip_low=self._objective.clip_low,
            clip_high=self._objective.clip_high,
            old_mean=batch.columns["means"][:, step] if "means" in batch.columns else None,
            reference=reference,
            kl_form=self._objective.kl_form,
            ratio=self._objective.ratio,
            scale=step_weight(
                self._objective.step_weights, policy.std, sigma=sigma, sigma_next=sigma_next
            ),
        )
        if batch.padding:
            return 0.0 * loss.sum()
        sums = {
            "loss/total": loss.double().sum(),
            # A mean over the steps that are held.
            "kl/reference": torch.zeros_like(ratio.ratio_sum)
            if kl is None
            else kl.double().sum() * steps / held,
            **sums_of(ratio),
        }
        tally.add(len(loss), sums, {DEVIATION: ratio.ratio_deviation_max})
        return loss.sum()

    def _old_log_prob(self, batch: MicroBatch, step: int) -> Float32[Tensor, " B"] | None:
        """None in an optimizer step whose own log-probs are the old ones."""
        if not self._own:
            return batch.columns["log_probs"][:, step]
        old = [self._old[image][step] for image in batch.ids if image in self._old]
        return torch.stack(old) if old else None

    def _log_prob(self, batch: MicroBatch, step: int) -> Float32[Tensor, " B"]:
        return self._transition(batch, step).log_prob(_next(batch, step))

    @torch.no_grad()
    def _referred(self, batch: MicroBatch, step: int) -> Transition:
        with self._reference():
            return self._transition(batch, step)

    def _ends(self, batch: MicroBatch, step: int) -> tuple[Tensor, Tensor]:
        """Each image's sigmas before and after its `step`-th trained step."""
        number = batch.first + step
        return self._sigmas[number], self._sigmas[number + 1]

    def _transition(self, batch: MicroBatch, step: int) -> Transition:
        latents = batch.columns["latents"][:, step].float()
        sigma, sigma_next = self._ends(batch, step)
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


def _next(batch: MicroBatch, step: int) -> Tensor:
    """The latents that a step has drawn."""
    return batch.columns["latents"][:, step + 1]
