"""Rows that are checkpoints of our runs, or the model that a run or a recipe starts from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator

from percent_ray.evaluation.generate import PolicySource
from percent_ray.evaluation.store import stamps
from percent_ray.export.source import read
from percent_ray.learn import checkpoint
from percent_ray.models.base import Decoder, Policy, family
from percent_ray.recipe import bounds, tree
from percent_ray.recipe import load as recipes
from percent_ray.recipe.section import Section

LAST, ALL = "last", "all"
"""What may stand after RUN@, beside a step."""

Place = Annotated[str, Field(max_length=1000)]


class CheckpointRow(Section):
    """A checkpoint of a run, or a model before training."""

    run: Place = ""
    """RUN@STEP of a run's folder, or of its name in runs/; @0 is the model before training. The
    last checkpoint where there is no @."""
    recipe: Place = ""
    """In the place of a run, a recipe file: the model that it starts from."""
    steps: bounds.Steps | None = None
    """Of the ODE; the evaluation's where not set."""
    guidance: bounds.Guidance | None = None
    """The run's own where not set."""
    batch_size: bounds.Batch | None = None
    """Pictures in one call of the model; the run's own where not set."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if bool(self.run) == bool(self.recipe):
            raise ValueError("give one of run, recipe or pipeline")
        return self


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a row of ours is, looked up: it can be sent to any machine that sees the same files."""

    model: tree.Model
    policy: Path | None
    """A checkpoint's folder of weights; None for the model before training."""
    steps: int
    batch_size: int
    name: str
    """For people, where the row has no label."""

    def identity(self) -> dict[str, Any]:
        """What its pictures depend on, as JSON: the model, the ODE, and the weights by content."""
        return {
            "model": self.model.model_dump(mode="json"),
            "files": stamps(self.model.path),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "weights": {} if self.policy is None else checkpoint.digests(self.policy),
        }


def resolve(row: CheckpointRow, *, steps: int) -> Checkpoint:
    """Look a row up. `steps` is the evaluation's. Raises ValueError, in one line, for a run, step
    or recipe that is not there."""
    if row.recipe:
        recipe = recipes.load(Path(row.recipe))
        return _made(row, recipe.model, None, steps, recipe.sampling.batch_size, "base model")
    run, _, asked = row.run.partition("@")
    source = read(run, step=_step(row.run, asked) or None)
    sampling: Mapping[str, Any] = checkpoint.read_recipe(source.checkpoint)["sampling"]
    base = asked == "0"
    name = f"{source.run}: before training" if base else f"{source.run} step {source.step}"
    policy = None if base else source.policy
    return _made(row, source.model, policy, steps, sampling["batch_size"], name)


def expand(run: str) -> list[str]:
    """RUN@all as a RUN@STEP of each of its checkpoints, oldest first; anything else as it is."""
    name, _, asked = run.partition("@")
    if asked != ALL:
        return [run]
    folder = read(name).checkpoint.parent.parent
    steps = [int(path.name.removeprefix("step-")) for path in checkpoint.every(folder)]
    return [f"{name}@{step}" for step in steps]


def newest(folder: Path) -> Path | None:
    """The run in `folder` that has written a checkpoint last."""
    runs = {
        path.parent.parent.parent for path in folder.glob(f"*/checkpoints/*/{checkpoint.DRIVER}")
    }
    written = {run: found.stat().st_mtime for run in runs if (found := checkpoint.latest(run))}
    return max(written, key=lambda run: written[run], default=None)


def _step(run: str, asked: str) -> int:
    """0 for the last one, and for the model before training, which any checkpoint tells of."""
    if asked in ("", LAST):
        return 0
    if not asked.isdecimal():
        raise ValueError(
            f"{run}: after @ comes a step, 0 or {LAST}; on the command line also {ALL}"
        )
    return int(asked)


def _made(
    row: CheckpointRow,
    model: tree.Model,
    policy: Path | None,
    steps: int,
    batch_size: int,
    name: str,
) -> Checkpoint:
    if row.guidance is not None:
        model = model.model_copy(update={"guidance": row.guidance})
    return Checkpoint(model, policy, row.steps or steps, row.batch_size or batch_size, name)


class Loader:
    """Loads checkpoints one after the other; of one model all but the trained weights once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._model: str | None = None
        self._policy: Policy | None = None
        self._decoder: Decoder | None = None
        self._trained = False

    def load(self, wanted: Checkpoint) -> PolicySource:
        """Raises ValueError, in one line, for a model or weights that do not load."""
        model = json.dumps(wanted.model.model_dump(mode="json"))
        # What has been trained is not taken back out: the model before training loads anew.
        if model != self._model or (self._trained and wanted.policy is None):
            self._model = self._policy = self._decoder = None  # memory for the next one
            models = family(wanted.model.family)
            self._policy = models.load_policy(wanted.model, seed=0, device=self._device, text=True)
            self._decoder = models.load_decoder(wanted.model, device=self._device)
            self._model, self._trained = model, False
        assert self._policy is not None
        assert self._decoder is not None
        if wanted.policy is not None:
            self._policy.load(str(wanted.policy))
            self._trained = True
        return PolicySource(
            self._policy, self._decoder, steps=wanted.steps, batch_size=wanted.batch_size
        )
