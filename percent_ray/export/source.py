"""What is exported: the trained weights of one checkpoint of a run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from percent_ray.learn import checkpoint, engine, zero
from percent_ray.models.trained import saved
from percent_ray.recipe import load as recipes
from percent_ray.recipe import tree
from percent_ray.recipe.errors import explain, first_line


@dataclass(frozen=True, slots=True)
class Source:
    """The weights of a checkpoint, and what to sample with them."""

    checkpoint: Path
    run: str
    """Name of the run's folder."""
    step: int
    """Learner steps that the weights have behind them."""
    model: tree.Model
    steps: int
    """Denoising steps of the run."""
    weights: Mapping[str, Tensor]
    """By the names of `Policy.trainable`, on the CPU; in full fine-tuning maybe with buffers."""
    average: bool
    """Whether they are the EMA's."""

    @property
    def policy(self) -> Path:
        """The checkpoint's folder of weights as diffusers loads them."""
        return self.checkpoint / "policy"


def read(run: str, *, step: int | None = None, average: bool | None = None) -> Source:
    """The weights of RUN: a run's folder, its name in the default folder, or a checkpoint of it.

    `step` chooses among a run's checkpoints, the newest where None. `average` asks for the EMA's
    weights or, where False, the trained ones; None is the EMA's where the run has one. Raises
    ValueError, in one line that says what to give, for what is not there.
    """
    folder = _checkpoint(run, step)
    if damage := checkpoint.problem(folder):
        raise ValueError(f"{damage}; choose another step")
    recipe = checkpoint.read_recipe(folder)
    model = _model(folder, recipe)
    averaged = (folder / "ema.safetensors").is_file()
    if average and not averaged:
        raise ValueError(
            f"{folder} has no EMA (learner.ema_decay 0); leave --ema out for the trained weights"
        )
    return Source(
        checkpoint=folder,
        run=folder.parent.parent.name,
        step=int(folder.name.removeprefix("step-")),
        model=model,
        steps=recipe["sampling"]["steps"],
        weights=_trained(folder) if averaged and average is False else _policy(folder, model),
        average=averaged and average is not False,
    )


def _checkpoint(run: str, step: int | None) -> Path:
    named = Path(recipes.defaults()["run"]["folder"]) / run
    for folder in (Path(run), named):
        if (folder / checkpoint.DRIVER).is_file():
            if folder.resolve() not in checkpoint.every(folder.resolve().parent.parent):
                raise ValueError(f"{folder} is not RUN/checkpoints/step-N; give it that place back")
            if step is not None:
                raise ValueError(f"{folder} is a checkpoint; leave the step out or give its run")
            return folder.resolve()
        there = {int(path.name.removeprefix("step-")): path for path in checkpoint.every(folder)}
        if there and step in {None, *there}:
            return there[max(there) if step is None else step].resolve()
        if there:
            raise ValueError(
                f"{folder} has no checkpoint of step {step}; choose one of "
                f"{', '.join(map(str, there))} (run.keep_checkpoints keeps the last ones)"
            )
    raise ValueError(
        f"no checkpoint in {run} nor in {named}; give the folder of a run that has written one"
    )


def _model(folder: Path, recipe: Mapping[str, Any]) -> tree.Model:
    try:
        # JSON mode reads a list as a tuple.
        return tree.Model.model_validate_json(json.dumps(recipe["model"]), strict=True)
    except ValidationError as error:
        problem = next(explain(error))
        raise ValueError(
            f"{folder} has a recipe of another version: model.{problem}; export it with the "
            "version that trained it"
        ) from None


def _policy(folder: Path, model: tree.Model) -> Mapping[str, Tensor]:
    """What the checkpoint holds as diffusers loads it; mapped from the file, not copied."""
    policy = folder / "policy"
    with whole(policy):
        return saved(str(policy), model)


def _trained(folder: Path) -> Mapping[str, Tensor]:
    """What the engine has saved to go on from."""
    stage = engine.read_stamp(folder)["zero_stage"]
    if stage is None:
        return engine.saved_weights(folder)
    try:
        return zero.saved_weights(folder, stage=stage)
    except ValueError as error:
        raise ValueError(f"{error}; leave --raw out for the EMA's") from None


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """A safetensors file of `folder` that is cut short, as a ValueError in one line."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{folder} has a file that is not whole: {first_line(error)}") from None
