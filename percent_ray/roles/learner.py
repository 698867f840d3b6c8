"""The learner role: a shaped batch in, the next policy version out. Knows nothing of who calls it.

Every rank of a group calls every method, in the same order and with the same arguments.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from safetensors.torch import load_file, save_file

from percent_ray.data import arrow
from percent_ray.learn.ema import Ema
from percent_ray.learn.engine import Engine
from percent_ray.learn.reference import Reference
from percent_ray.learn.replay import Images, Replay, Tally, chunks, metrics, micro_batches
from percent_ray.models.base import Policy
from percent_ray.recipe.tree import Recipe
from percent_ray.types import ShapedBatch, Span, Update


class Learner:
    """Policy, optimizer and EMA of one rank."""

    def __init__(self, recipe: Recipe, policy: Policy, engine: Engine) -> None:
        self.version = 0
        """Batches consumed: the policy version that the weights are."""
        self._recipe = recipe
        self._policy = policy
        self._engine = engine
        self._reference = Reference(policy, recipe.objective)
        self._replay = Replay(recipe, policy, self._reference)
        learner = recipe.learner
        self._ema = (
            Ema(engine, cap=learner.ema_decay, every=learner.ema_every)
            if learner.ema_decay
            else None
        )
        self._published: tuple[pa.Table | None, str] | None = None
        """Of the present weights, once they were asked for."""

    def update(self, batch: ShapedBatch) -> Update:
        """Learn from a batch whose rows hold their tables.

        `learner.updates` optimizer steps; a batch without rows makes none, and only moves the
        version. Raises FloatingPointError where a gradient is not finite: the weights are then
        those of an interrupted update.
        """
        assert batch.version == self.version, f"batch {batch.version}, weights {self.version}"
        start = time.time()
        recipe = self._recipe
        images = Images(batch)
        seed, updates = recipe.run.seed, recipe.learner.updates
        parts = chunks(len(images), updates, seed=seed, version=batch.version)
        tallies: list[Tally] = []
        norms: list[float] = []
        for chunk in parts:
            tallies.append(self._accumulate(images, chunk))
            norms.append(self._engine.step())
            if self._ema is not None:
                self._ema.step()
        self.version = batch.version + 1
        self._published = None if parts else self._published
        measured = {"learner/images": float(len(images)), "learner/updates": float(len(parts))}
        if parts:
            measured |= metrics(tallies, self._engine, referred=images.referred)
            measured |= {"grad/norm": sum(norms) / len(norms), "grad/norm_max": max(norms)}
        if images.referred:
            renewed = self._reference.follow(self.version, measured["kl/reference"])
            measured["kl/reference_renewed"] = float(renewed)
        span = Span("update", f"learner-{self._engine.rank}", start, time.time())
        return Update(self.version, measured, span)

    def publish(self) -> tuple[pa.Table | None, str]:
        """The trained weights as `arrow.pack` has them, in their own dtype, and their checksum;
        (None, "") on all ranks but 0."""
        if self._published is None:
            weights = self._engine.gather()
            self._published = (
                (None, "") if weights is None else (arrow.pack(weights), arrow.checksum(weights))
            )
        return self._published

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs into an existing folder that all ranks see, and under
        `policy` the weights (the EMA's, where there is one) as a user would load them."""
        self._engine.save(folder)
        weights = self._engine.gather()
        if weights is None:
            return
        if self._ema is not None and self._ema.weights is not None:
            weights = self._ema.weights
            save_file(weights, folder / "ema.safetensors")
        self._reference.save(folder)
        self._policy.save(str(folder / "policy"), weights)
        state = {"version": self.version, "ema_steps": self._ema.steps if self._ema else None}
        (folder / "learner.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continue from `save` as if there had been no break. Raises ValueError for a folder of
        another engine, ZeRO stage, number of ranks or EMA setting."""
        self._engine.load(folder)
        state = json.loads((folder / "learner.json").read_text())
        steps = state["ema_steps"]
        if (self._ema is None) != (steps is None):
            on, value = ("off", "0") if steps is None else ("on", "above 0")
            raise ValueError(f"{folder} was saved with the EMA {on}; set learner.ema_decay {value}")
        if self._ema is not None:
            self._ema.load(steps, load_file(folder / "ema.safetensors"))
        self._reference.load(folder, self._engine.device)
        self.version = state["version"]
        self._published = None

    def _accumulate(self, images: Images, chunk: Sequence[int]) -> Tally:
        """The gradients of this rank's share of a chunk."""
        engine = self._engine
        tally = Tally(engine.device)
        mine = list(
            micro_batches(
                chunk,
                rank=engine.rank,
                world=engine.world,
                size=self._recipe.learner.micro_batch,
            )
        )
        for number, (numbers, padding) in enumerate(mine):
            batch = images.take(numbers, engine.device, padding=padding)
            for step in range(images.steps):
                loss = self._replay.loss(batch, step, tally, transitions=len(chunk) * images.steps)
                last = number == len(mine) - 1 and step == images.steps - 1
                engine.backward(loss, last=last)
        return tally
