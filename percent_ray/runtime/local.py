"""The three roles in one process, without Ray: for tests, debuggers and single-GPU users.

Rollout and learner share one set of weights, so sampling under version v is over before version
v + 1 exists, but in a run that was resumed between two barriers: there the weights of the versions
before are taken for a while. Every call runs to its end before another one starts.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa

from percent_ray.data import arrow
from percent_ray.learn import older
from percent_ray.learn.engine import TorchEngine
from percent_ray.models.base import best_device, family
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.slots import drawn_by
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
        self.engine = TorchEngine(recipe.learner, self.policy)
        self.learner = Learner(recipe, self.policy, self.engine)
        self._older: dict[int, pa.Table | None] = {}
        """Weights of the versions before the learner's that may be behind groups in flight."""
        if resume is not None:
            self._older = {0: self.learner.publish()[0], **older.read(resume)}
            self.learner.load(resume)
        self.rollout = RolloutWorker(recipe, worker="local", policy=self.policy)
        self.perception = PerceptionWorker(recipe, worker="local")
        self.loaded = [*self.rollout.ready(), *self.perception.ready()]
        self.perception.try_out(first)

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        with self._drawing(version):
            return self.rollout.sample(group_id, prompt, version)

    def _drawing(self, version: int) -> AbstractContextManager[None]:
        """Inside, the policy is the one that draws under a version."""
        if version == self.learner.version:
            return self.learner.drawing()
        weights = arrow.unpack(self._older[version])
        return self.engine.holding({n: w.to(self.engine.device) for n, w in weights.items()})

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        return self.perception.perceive(trajectory, pictures=pictures)

    async def update(self, batch: ShapedBatch) -> Update:
        staleness = self.recipe.runtime.max_staleness
        if staleness:
            self._older[self.learner.version], _ = self.learner.publish()
        update = self.learner.update(batch)
        self._older = {v: w for v, w in self._older.items() if v >= update.version - staleness}
        return update

    async def publish(self, version: int) -> None:
        assert version == self.learner.version

    async def save(self, folder: Path) -> None:
        self.learner.save(folder)
        version, runtime = self.learner.version, self.recipe.runtime
        first = drawn_by(version, runtime.max_staleness, self.recipe.run.checkpoint_every)
        for before in range(first, version):
            older.write(folder, before, self._older[before])

    def queued(self) -> Mapping[str, int]:
        return {"rollout": 0, "perception": 0}

    async def close(self) -> None:
        """Nothing outlives the call."""
