"""The learner role: a shaped batch in, the next policy version out. Knows nothing of who calls it.

Every rank of a group calls every method, in the same order and with the same arguments.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import save_file

from percent_ray.data import arrow
from percent_ray.learn.batch import (
    Images,
    MicroBatch,
    chunks,
    groups_of,
    micro_batches,
    shares,
)
from percent_ray.learn.ema import Ema
from percent_ray.learn.engine import Engine, rate
from percent_ray.learn.forward import Forward
from percent_ray.learn.meter import Meter
from percent_ray.learn.old import Old
from percent_ray.learn.process import Process, Tally, reduce
from percent_ray.learn.reference import Reference
from percent_ray.learn.replay import Replay
from percent_ray.models.base import Policy
from percent_ray.models.weights import not_finite, some
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
        self._reference = Reference(policy, engine, recipe.objective)
        learner = recipe.learner
        self._old = Old(policy, engine, learner.old) if recipe.is_forward else None
        """What groups are drawn with, where that is not the trained weights."""
        self._process: Process = (
            Replay(recipe, policy, self._reference)
            if self._old is None
            else Forward(recipe, policy, self._reference, self._old)
        )
        self._meter = Meter(policy, engine)
        self._ema = (
            Ema(engine, policy.trainable(), cap=learner.ema_decay, every=learner.ema_every)
            if learner.ema_decay
            else None
        )
        self._checked = False
        """Whether the run has taken an optimizer step on what its weights have drawn."""

    def groups(self, batch: ShapedBatch) -> list[int]:
        """Numbers of the rows whose tables this rank learns from."""
        engine, sizes = self._engine, _sizes(batch)
        return groups_of(sizes, self._parts(batch), rank=engine.rank, world=engine.world)

    def agree(self, rows: Sequence[int], count: int) -> list[int]:
        """Those of the rows 0 .. `count` - 1 that any rank names."""
        named = torch.zeros(count, dtype=torch.float64)
        named[list(rows)] = 1.0
        return self._engine.all_reduce(named, "max").nonzero().flatten().tolist()

    def update(self, batch: ShapedBatch) -> Update:
        """Learn from a batch. The rows of `groups` hold their tables, the others may hold None.

        `learner.updates` optimizer steps; a batch without rows makes none, and only moves the
        version. Raises FloatingPointError, that says what of data, weights and loss is the first
        that is not, where a gradient is not finite: the weights are then those of an interrupted
        update. Raises ValueError, before any weight has changed, where the
        ratio of what these weights have drawn is not 1 (`Replay.check`).
        """
        assert batch.version == self.version, f"batch {batch.version}, weights {self.version}"
        start = time.time()
        self._check_weights()
        images = Images(batch, self._process.columns(batch))
        parts = self._parts(batch)
        tallies: list[Tally] = []
        norms: list[float] = []
        self._process.begin(self._batches(images, parts[1:]))
        floor: Mapping[str, float] = {}
        drawn = all(row.version == self.version for row in batch.rows)
        lr = rate(self._recipe.learner, self.version)
        for number, chunk in enumerate(parts):
            tallies.append(self._accumulate(images, chunk))
            if drawn and not number:
                first = reduce(tallies, self._engine)
                floor = self._process.check(first, strict=not self._checked)
                self._checked = True
            cut = [share for share in shares(chunk, world=self._engine.world) if share]
            whole = all(images.split(one[-1], other[0]) for one, other in pairwise(cut))
            self._meter.end_step(independent=whole)
            try:
                norms.append(self._engine.step(lr=lr))
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}: {_culprit(images, tallies[-1])}") from None
            if self._ema is not None:
                self._ema.step()
        self.version = batch.version + 1
        measured = {"learner/images": float(len(images)), "learner/updates": float(len(parts))}
        if parts:
            measured |= {**reduce(tallies, self._engine), **floor}
            measured["learner/lr"] = lr
            measured |= {"grad/norm": sum(norms) / len(norms), "grad/norm_max": max(norms)}
            measured |= self._meter.metrics()
        # Both are of the clock, which a batch that teaches nothing moves, too.
        if self._old is not None:
            measured["learner/old_decay"] = self._old.follow(self.version)
        if not images.referred:
            measured.pop("kl/reference", None)
        if images.referred or not parts:
            renewed = self._reference.follow(self.version, measured.get("kl/reference", 0.0))
            if images.referred or renewed:
                measured["kl/reference_renewed"] = float(renewed)
        span = Span("update", f"learner-{self._engine.rank}", start, time.time())
        return Update(self.version, measured, span)

    def _check_weights(self) -> None:
        """Raises FloatingPointError for trained weights that are not finite. Under ZeRO 3 there are
        none here to look at."""
        if wrong := not_finite(self._policy.trainable()):
            raise FloatingPointError(
                f"{len(wrong)} of the trained weights are NaN or infinite ({some(wrong)}) "
                f"before update {self.version}, as the one before has left them; go on from a "
                "checkpoint before it with a lower learner.lr"
            )

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, the policy is the one of `publish`: the trained one, or in the forward process
        the old one."""
        return nullcontext() if self._old is None else self._old()

    def publish(self) -> tuple[pa.Table | None, str]:
        """The weights that groups are drawn with, as `arrow.pack` has them, in the trained ones'
        dtype, and their checksum; (None, "") on all ranks but 0."""
        weights = (self._engine if self._old is None else self._old).gather()
        return (None, "") if weights is None else (arrow.pack(weights), arrow.checksum(weights))

    def save(self, folder: Path) -> None:
        """Write everything that `load` needs into an existing folder that all ranks see, and under
        `policy` the weights (the EMA's, where there is one) as a user would load them, in the
        trained ones' dtype."""
        self._engine.save(folder)
        weights = (self._engine if self._ema is None else self._ema).gather()
        if weights is None:
            return
        if self._ema is not None:
            save_file(weights, folder / "ema.safetensors")
            trained = self._policy.trainable()
            weights = {name: weight.to(trained[name].dtype) for name, weight in weights.items()}
        self._reference.save(folder)
        self._meter.save(folder)
        if self._old is not None:
            self._old.save(folder)
        self._policy.save(str(folder / "policy"), weights)
        state = {
            "version": self.version,
            "ema_steps": self._ema.steps if self._ema else None,
            "checked": self._checked,
        }
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
            self._ema.load(steps, folder / "ema.safetensors")
        self._reference.load(folder, self._engine.device)
        self._meter.load(folder)
        if self._old is not None:
            self._old.load(folder)
        self.version = state["version"]
        # Earlier versions have not written it, and have looked at every first step.
        self._checked = state.get("checked", self.version > 0)

    def _parts(self, batch: ShapedBatch) -> list[list[int]]:
        """The images of each optimizer step."""
        seed, updates = self._recipe.run.seed, self._recipe.learner.updates
        return chunks(_sizes(batch), updates, seed=seed, version=batch.version)

    def _mine(self, chunk: Sequence[int]) -> list[tuple[list[int], bool]]:
        """This rank's micro-batches of a chunk, and whether each is padding."""
        engine, size = self._engine, self._recipe.learner.micro_batch
        return list(micro_batches(chunk, rank=engine.rank, world=engine.world, size=size))

    def _batches(self, images: Images, parts: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        for chunk in parts:
            for numbers, padding in self._mine(chunk):
                yield images.take(numbers, self._engine.device, padding=padding)

    def _accumulate(self, images: Images, chunk: Sequence[int]) -> Tally:
        """The gradients of this rank's share of a chunk."""
        engine, process = self._engine, self._process
        tally = process.tally(engine.device)
        mine = self._mine(chunk)
        passes = process.passes(images.steps)
        unit = 0
        for place, (numbers, padding) in enumerate(mine, start=1):
            batch = images.take(numbers, engine.device, padding=padding)
            for number, loss in enumerate(process.losses(batch, tally), start=1):
                last = place == len(mine) and number == passes
                engine.backward(loss / (len(chunk) * passes), last=last)
            unit += 0 if padding else len(numbers)
            ahead = mine[place][0] if place < len(mine) else None
            if ahead is None or images.split(ahead[0], numbers[-1]):
                self._meter.end_unit(unit / len(chunk))
                unit = 0
        return tally


def _sizes(batch: ShapedBatch) -> list[int]:
    """Images of each group."""
    return [len(row.weights.advantage) for row in batch.rows]


def _culprit(images: Images, tally: Tally) -> str:
    """Why a gradient is not finite, and what to set, where a setting would help."""
    if data := images.not_finite():
        return f"{data} has NaN or infinite numbers, which no setting of the learner mends"
    if not tally.sums.isfinite().all():
        return (
            "so is the loss, and the data and trained weights of this rank are finite: activations "
            "overflow; set model.dtype float32 or bfloat16, or a lower learner.lr"
        )
    return "the loss and the data of this rank are finite; set a lower learner.lr"
