"""Checkpoint folders that are whole or not there, and the driver's part of one.

    RUN/checkpoints/step-00000060/{driver.json, engine.json, learner.json, policy/, ...}

A folder is written under a temporary name, synced to disk and renamed.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from percent_ray.recipe.load import differences
from percent_ray.recipe.tree import Recipe

FORMAT = 3
PARTIAL = ".partial-"
DRIVER = "driver.json"
"""In a checkpoint, and only there."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """Where a run stands, beside the learner's weights. Every field is JSON."""

    version: int
    """The policy version in the checkpoint: learner steps done."""
    shape_state: Mapping[str, float]
    """What the method remembers from step to step."""
    mlflow_run_id: str | None
    """The run that a resumed one continues."""


@contextmanager
def writing(run_folder: Path, step: int, *, keep: int) -> Iterator[Path]:
    """An empty folder to write the checkpoint of `step` into; at the end it takes its name at once.

    Clears the remains of interrupted checkpoints first, and leaves the last `keep` checkpoints.
    An exception inside leaves none of it. Raises ValueError where the step has a checkpoint.
    """
    root = run_folder / "checkpoints"
    target = root / f"step-{step:08d}"
    if target.exists():
        raise ValueError(f"{target} exists; resume it, or set another run.name")
    root.mkdir(parents=True, exist_ok=True)
    for remains in root.glob(f"{PARTIAL}*"):
        shutil.rmtree(remains)
    partial = root / f"{PARTIAL}{target.name}"
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        os.replace(partial, target)
        _sync_folder(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in every(run_folder)[:-keep]:
        # Renamed first: a half-deleted checkpoint must not look like one.
        doomed = old.rename(root / f"{PARTIAL}{old.name}")
        shutil.rmtree(doomed)


def latest(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return next(reversed(every(run_folder)), None)


def write_state(folder: Path, state: DriverState, recipe: Recipe) -> None:
    """Write the driver's state and the recipe into a checkpoint folder."""
    fields = {"format": FORMAT, "state": asdict(state), "recipe": recipe.model_dump(mode="json")}
    (folder / DRIVER).write_text(json.dumps(fields, indent=1))


def read_state(folder: Path, recipe: Recipe) -> DriverState:
    """The driver's state. Raises ValueError for another format, and for a checkpoint whose recipe
    differs in a field that is not in `recipe.FREE`: it names the fields and both values."""
    fields = _fields(folder)
    changed = differences(fields["recipe"], recipe.model_dump(mode="json"))
    if changed:
        raise ValueError(f"{folder} is of another recipe: {'; '.join(changed)}; set them back")
    return DriverState(**fields["state"])


def read_recipe(folder: Path) -> Mapping[str, Any]:
    """The recipe that a checkpoint was written under, as plain data: its files may be gone. Raises
    ValueError for another format."""
    return _fields(folder)["recipe"]


def _fields(folder: Path) -> Mapping[str, Any]:
    fields = json.loads((folder / DRIVER).read_text())
    if fields["format"] != FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {fields['format']}, this version reads {FORMAT}; "
            "use the version that began the run, or start a new one"
        )
    return fields


def every(run_folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted((run_folder / "checkpoints").glob("step-*"))


def _sync(folder: Path) -> None:
    """To disk, with everything in it: a rename can reach the disk before the data does."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
