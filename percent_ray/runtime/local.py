"""The three roles in one process, without Ray: for tests, debuggers and single-GPU users.

Rollout and learner share one set of weights, so sampling under version v must be over before
version v + 1 exists. Every call runs to its end before another one starts.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from percent_ray.config import Recipe
from percent_ray.learn.engine import TorchEngine
from percent_ray.learn.learner import Learner
from percent_ray.models.base import family
from percent_ray.runtime.device import best_device
from percent_ray.runtime.perception import Perceiver
from percent_ray.runtime.rollout import Rollout
from percent_ray.types import Perception, Prompt, ShapedBatch, Trajectory, Update


class Local:
    """`loop.Roles` in this process."""

    def __init__(self, recipe: Recipe, *, resume: Path | None = None) -> None:
        self.recipe = recipe
        self.policy = family(recipe.model.family).load_policy(
            recipe.model, seed=recipe.run.seed, device=best_device(), text=True
        )
        self.learner = Learner(recipe, self.policy, TorchEngine(recipe.learner, self.policy))
        if resume is not None:
            self.learner.load(resume)
        self.rollout = Rollout(recipe, worker="local", policy=self.policy)
        self.perceiver = Perceiver(recipe, worker="local")
        self.perceiver.ready()

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        assert version == self.learner.version, f"asked {version}, have {self.learner.version}"
        trajectory, payload, condition = self.rollout.sample(group_id, prompt, version)
        return replace(trajectory, payload=payload, condition=condition)

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        return self.perceiver.perceive(trajectory, trajectory.payload, pictures=pictures)

    async def update(self, batch: ShapedBatch) -> Update:
        return self.learner.update(batch, [(row.payload, row.condition) for row in batch.rows])

    async def publish(self, version: int) -> None:
        assert version == self.learner.version

    async def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def queued(self) -> Mapping[str, int]:
        return {"rollout": 0, "perception": 0}

    async def close(self) -> None:
        """Nothing outlives the call."""
