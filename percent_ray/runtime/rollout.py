"""The rollout role: one prompt in, one sampled group out. Knows nothing of who calls it."""

import time

import pyarrow as pa
import torch

from percent_ray.config import Recipe
from percent_ray.data import arrow
from percent_ray.data.conditions import ConditionCache
from percent_ray.flow import noise, sampler, schedule
from percent_ray.models.base import Condition, Policy, family
from percent_ray.runtime.device import best_device
from percent_ray.types import Prompt, Span, Trajectory


class Rollout:
    """Draws groups. The model is loaded at the first call, so that a restarted actor needs none of
    its predecessor's state and a bad recipe comes back as the error of a call.

    `policy` is given where the learner's own weights are shared; then no weights are ever loaded.
    """

    def __init__(self, recipe: Recipe, *, worker: str, policy: Policy | None = None) -> None:
        self.recipe = recipe
        self.worker = worker
        self._shared = policy is not None
        self._policy = policy
        self._checksum: str | None = None
        self._conditions: ConditionCache | None = None

    def ready(self) -> None:
        """Load the model. Raises the loader's ValueError for a bad folder."""
        if self._policy is None:
            model = self.recipe.model
            self._policy = family(model.family).load_policy(
                model, seed=self.recipe.run.seed, device=best_device(), text=True
            )
        if self._conditions is None:
            self._conditions = ConditionCache(self._policy.encode)

    def sample(
        self,
        group_id: int,
        prompt: Prompt,
        version: int,
        weights: pa.Table | None = None,
        checksum: str | None = None,
    ) -> tuple[Trajectory, pa.Table, pa.Table]:
        """The group, its payload and its condition (`data/arrow.py` has both schemas). The tables
        are returned beside the trajectory, whose references the caller fills in, so that they can
        stay in the object store.

        `weights` are loaded first where they are not the ones at hand; None stands for the model as
        it was loaded, or for the learner's own. The draws are a function of
        (run seed, group id, image, step): sampled again anywhere, it is the same group.
        """
        start = time.time()
        self.ready()
        assert weights is not None or self._checksum is None, "other weights are loaded already"
        if weights is not None and checksum != self._checksum:
            self._load(weights, checksum)
        policy, conditions = self._policy, self._conditions
        assert policy is not None
        assert conditions is not None
        sigmas = policy.sigmas(self.recipe.sampling.steps)
        steps = trained_steps(self.recipe, group_id)
        perceptual = self.recipe.perceptual
        scored = schedule.scored_steps(
            steps, perceptual.steps or None, seed=self.recipe.run.seed, group_id=group_id
        )
        condition = conditions.get(prompt.text)
        path = self._paths(policy, condition, group_id, sigmas, steps, scored)
        std = schedule.step_std(
            sigmas, noise_level=self.recipe.sampling.noise_level, kind=self.recipe.sampling.kind
        )
        payload = arrow.trajectory_table(steps=steps, **path)
        span = Span("sample", self.worker, start, time.time(), group_id)
        trajectory = Trajectory(
            group_id=group_id,
            prompt=prompt,
            version=version,
            steps=steps,
            std=std[steps.start : steps.stop].numpy(),
            scored=scored,
            payload=None,
            condition=None,
            span=span,
        )
        return trajectory, payload, arrow.pack(condition)

    def _load(self, weights: pa.Table, checksum: str | None) -> None:
        assert self._policy is not None
        assert not self._shared, "a shared policy is never loaded into"
        tensors = arrow.unpack(weights)
        found = arrow.checksum(tensors)
        if found != checksum:
            raise ValueError(f"published weights have checksum {found}, expected {checksum}")
        trainable = self._policy.trainable()
        if trainable.keys() != tensors.keys():
            raise ValueError(
                f"published weights have {len(tensors)} tensors, the model trains {len(trainable)}"
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(tensors[name])
        self._checksum = checksum

    def _paths(
        self,
        policy: Policy,
        condition: Condition,
        group_id: int,
        sigmas: torch.Tensor,
        steps: range,
        scored: tuple[int, ...],
    ) -> dict[str, torch.Tensor]:
        """The group's SDE path by column of the payload, images first, sampled in batches."""
        recipe, sampling = self.recipe, self.recipe.sampling
        device = next(policy.module.parameters()).device
        shape = policy.latent_shape
        spaces = recipe.measured_spaces(probe=group_id < 0)
        clean = recipe.perceptual.decode == "clean" and bool(spaces)
        batches: list[dict[str, torch.Tensor]] = []
        for first in range(0, sampling.group_size, sampling.batch_size):
            images = range(first, min(first + sampling.batch_size, sampling.group_size))

            def draw(step: int, images: range = images) -> torch.Tensor:
                return noise.group_noise(recipe.run.seed, group_id, images, step, shape)

            path = sampler.rollout(
                lambda latents, sigma: policy.velocity(latents, sigma, condition),
                draw(noise.INITIAL).to(device),
                sigmas.to(device),
                steps=steps,
                noise_level=sampling.noise_level,
                kind=sampling.kind,
                noise_at=draw,
                storage_dtype=getattr(torch, sampling.storage_dtype),
                clean=clean,
                clean_steps=scored if clean else None,
            )
            columns = {
                "latents": path.latents,
                "means": path.means,
                "log_probs": path.log_probs,
                "clean_next": path.clean_latents,
                "clean_mean": path.clean_means,
            }
            batch = {k: v.transpose(0, 1).cpu() for k, v in columns.items() if v is not None}
            batches.append(batch | {"final": path.final.cpu()})
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def trained_steps(recipe: Recipe, group_id: int) -> range:
    """The SDE steps of a group: one range for every group of a learner step. Probe groups (negative
    ids) all take that of step 0, so that they can be compared along a run."""
    sampling = recipe.sampling
    if not sampling.window_size:
        return schedule.trained_steps(sampling.steps, fraction=sampling.train_fraction)
    return schedule.sde_window(
        sampling.steps,
        size=sampling.window_size,
        low=sampling.window_low,
        high=sampling.window_high,
        seed=recipe.run.seed,
        iteration=max(group_id, 0) // recipe.data.groups_per_step,
    )
