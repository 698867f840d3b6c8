"""The three roles in one process, without Ray: for tests, debuggers and single-GPU users.

Rollout and learner share one set of weights, so sampling under version v must be over before
version v + 1 exists. Every call runs to its end before another one starts.
"""

from collections.abc import Mapping
from pathlib import Path

from percent_ray.learn.engine import TorchEngine
from percent_ray.models.base import best_device, family
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.types import Perception, Prompt, ShapedBatch, Trajectory, Update


class Local:
    """`loop.Roles` in this process.

    Loads everything and tries every scorer on the run's `first` prompt. Raises ValueError, in one
    line, for a bad folder and a broken scorer.
    """

    def __init__(self, recipe: Recipe, *, first: Prompt, resume: Path | None = None) -> None:
        self.recipe = recipe
        self.policy = family(recipe.model.family).load_policy(
            recipe.model, seed=recipe.run.seed, device=best_device(), text=True
        )
        self.learner = Learner(recipe, self.policy, TorchEngine(recipe.learner, self.policy))
        if resume is not None:
            self.learner.load(resume)
        self.rollout = RolloutWorker(recipe, worker="local", policy=self.policy)
        self.perception = PerceptionWorker(recipe, worker="local")
        self.loaded = [*self.rollout.ready(), *self.perception.ready()]
        self.perception.try_out(first)

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        assert version == self.learner.version, f"asked {version}, have {self.learner.version}"
        with self.learner.drawing():
            return self.rollout.sample(group_id, prompt, version)

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        return self.perception.perceive(trajectory, pictures=pictures)

    async def update(self, batch: ShapedBatch) -> Update:
        return self.learner.update(batch)

    async def publish(self, version: int) -> None:
        assert version == self.learner.version

    async def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def queued(self) -> Mapping[str, int]:
        return {"rollout": 0, "perception": 0}

    async def close(self) -> None:
        """Nothing outlives the call."""
