"""The rollout role: one prompt in, one sampled group out. Knows nothing of who calls it."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32

from percent_ray.data import arrow
from percent_ray.data.conditions import ConditionCache
from percent_ray.flow import noise, sampler, schedule
from percent_ray.models.base import Condition, Policy, best_device, family
from percent_ray.models.solver import draw
from percent_ray.recipe.tree import Recipe
from percent_ray.types import Prompt, Span, Trajectory


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a process has drawn of a group: these fields of its `Trajectory`."""

    steps: range
    std: Float32[np.ndarray, " S"]
    entropy: Float32[np.ndarray, " S"]
    scored: tuple[int, ...]
    payload: pa.Table


class RolloutWorker:
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

    def ready(self) -> list[str]:
        """Load the model; lines that say what was loaded. Raises the loader's ValueError for a bad
        folder."""
        if self._policy is None:
            model = self.recipe.model
            self._policy = family(model.family).load_policy(
                model, seed=self.recipe.run.seed, device=best_device(), text=True
            )
        if self._conditions is None:
            self._conditions = ConditionCache(self._policy.encode)
        return [self._policy.describe()]

    def sample(
        self,
        group_id: int,
        prompt: Prompt,
        version: int,
        weights: pa.Table | None = None,
        checksum: str | None = None,
    ) -> Trajectory:
        """One group, with its payload and its condition as tables (schemas: `data/arrow.py`).

        `weights` are loaded first where they are not the ones at hand; None stands for the model as
        it was loaded, or for the learner's own. The draws are a function of
        (run seed, group id, image, step): sampled again anywhere, it is the same group.
        """
        start = time.time()
        if weights is None and self._checksum is not None:  # a first group is drawn again
            self._policy = self._conditions = self._checksum = None
        self.ready()
        if weights is not None and checksum != self._checksum:
            self._load(weights, checksum)
        policy, conditions = self._policy, self._conditions
        assert policy is not None
        assert conditions is not None
        condition = conditions.get(prompt.text)
        way = self._images if self.recipe.is_forward else self._path
        drawn = way(policy, condition, group_id)
        return Trajectory(
            group_id=group_id,
            prompt=prompt,
            version=version,
            steps=drawn.steps,
            std=drawn.std,
            entropy=drawn.entropy,
            scored=drawn.scored,
            payload=drawn.payload,
            condition=arrow.pack(condition),
            span=Span("sample", self.worker, start, time.time(), group_id),
        )

    def _load(self, weights: pa.Table, checksum: str | None) -> None:
        assert self._policy is not None
        assert not self._shared, "a shared policy is never loaded into"
        tensors = arrow.unpack(weights)
        arrived = arrow.checksum(tensors)
        if arrived != checksum:
            raise ValueError(f"published weights have checksum {arrived}, expected {checksum}")
        trainable = self._policy.trainable()
        if trainable.keys() != tensors.keys():
            raise ValueError(
                f"published weights have {len(tensors)} tensors, the model trains {len(trainable)}"
            )
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(tensors[name])
        self._checksum = checksum

    def _images(self, policy: Policy, condition: Condition, group_id: int) -> Drawn:
        """The forward process: the group's finished latents by the ODE, and no steps."""
        sampling = self.recipe.sampling
        final = draw(
            policy,
            condition,
            seed=self.recipe.run.seed,
            group_id=group_id,
            images=sampling.group_size,
            steps=sampling.steps,
            batch_size=sampling.batch_size,
            solver=sampling.solver,
        )
        stored = final.to("cpu", getattr(torch, sampling.storage_dtype))
        nothing = np.zeros(0, np.float32)
        return Drawn(range(0), nothing, nothing, (), arrow.images_table(stored))

    def _path(self, policy: Policy, condition: Condition, group_id: int) -> Drawn:
        """The reverse process: the group's SDE path."""
        recipe, sampling = self.recipe, self.recipe.sampling
        steps = recipe.trained_steps(group_id)
        scored = schedule.scored_steps(
            steps, recipe.perceptual.steps or None, seed=recipe.run.seed, group_id=group_id
        )
        device = next(policy.module.parameters()).device
        sigmas = policy.sigmas(sampling.steps).to(device)
        spaces = recipe.measured_spaces(probe=group_id < 0)
        clean = recipe.perceptual.decode == "clean" and bool(spaces)
        paths: list[sampler.Path] = []
        for first in range(0, sampling.group_size, sampling.batch_size):
            images = range(first, min(first + sampling.batch_size, sampling.group_size))

            def noise_at(step: int, images: range = images) -> torch.Tensor:
                seed, shape = recipe.run.seed, policy.latent_shape
                return noise.group_noise(seed, group_id, images, step, shape)

            path = sampler.rollout(
                lambda latents, sigma: policy.velocity(latents, sigma, condition),
                noise_at(noise.INITIAL).to(device),
                sigmas,
                steps=steps,
                noise_level=sampling.noise_level,
                kind=sampling.kind,
                noise_at=noise_at,
                storage_dtype=getattr(torch, sampling.storage_dtype),
                clean_steps=scored if clean else (),
            )
            paths.append(sampler.join([path]))
        joined = sampler.join(paths)
        std, entropy = joined.std.numpy(), joined.entropy.numpy()
        return Drawn(steps, std, entropy, scored, _table(joined, steps))


def _table(path: sampler.Path, steps: range) -> pa.Table:
    """The payload: images first, where a path has steps first."""
    columns = {
        "latents": path.latents,
        "means": path.means,
        "log_probs": path.log_probs,
        "clean_next": path.clean_latents,
        "clean_mean": path.clean_means,
    }
    rows = {name: t.transpose(0, 1) for name, t in columns.items() if t is not None}
    return arrow.trajectory_table(**rows, final=path.final, steps=steps)
