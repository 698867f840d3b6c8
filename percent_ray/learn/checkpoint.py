"""Checkpoint folders that are whole or not there, and the driver's part of one.

    RUN/checkpoints/step-00000060/{driver.json, engine.json, learner.json, policy/, manifest.json}

A folder is written under a temporary name, its manifest last, synced to disk and renamed. What a
disk or a hand has done to it since is found by the manifest's sizes and checksums.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from percent_ray.recipe.load import differences
from percent_ray.recipe.tree import Recipe

FORMAT = 4
PARTIAL = ".partial-"
DAMAGED = "damaged-"
"""Begins the name of a checkpoint that a resumed run has found damaged and gone behind."""
MANIFEST = "manifest.json"
"""Size and SHA-256 of every other file of a checkpoint."""
PROBE = 1 << 20
"""Bytes that a disk has no room for when it is called full."""
DRIVER = "driver.json"
"""In a checkpoint, and only there."""
LEARNER = ("engine.json", "learner.json", "policy")
"""What the learner writes into one, of every engine and model."""


class Damaged(ValueError):
    """A driver's file that is not what was written."""


@dataclass(frozen=True, slots=True)
class DriverState:
    """Where a run stands, beside the learner's weights. Every field is JSON."""

    version: int
    """The policy version in the checkpoint: learner steps done."""
    shape_state: Mapping[str, float]
    """What the method remembers from step to step."""
    mlflow_run_id: str | None
    """The run that a resumed one continues."""
    oldest: int
    """The first version that the next groups are drawn by (`Slots.drawn_by`). Where it is before
    `version`, the weights of the versions between are in the checkpoint: `learn/older.py`."""
    prompts: str = ""
    """`data.prompts.digest` of the prompts: another file would go on with other groups. Empty in
    checkpoints that are older than it."""


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
        seal(partial)
        _sync(partial)
        os.replace(partial, target)
        _sync_folder(root)
    except BaseException as error:
        full = _full(partial)
        shutil.rmtree(partial, ignore_errors=True)
        if full:  # whatever a library has made of it
            raise OSError(full.errno, full.strerror, str(target)) from error
        raise
    for old in every(run_folder)[:-keep]:
        # Renamed first: a half-deleted checkpoint must not look like one.
        doomed = old.rename(root / f"{PARTIAL}{old.name}")
        shutil.rmtree(doomed)


def check_learner(folder: Path) -> None:
    """Raises ValueError where the learner has written into another machine's folder of the name."""
    if absent := [name for name in LEARNER if not (folder / name).exists()]:
        raise ValueError(
            f"the learner has saved, and {folder} has no {', '.join(absent)}: its machine does not "
            "see run.folder; set that to a folder that all machines share"
        )


def seal(folder: Path) -> None:
    """Write the manifest of the files that a folder holds now."""
    manifest = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in digests(folder).items()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def latest(run_folder: Path) -> Path | None:
    """The newest checkpoint of a run, by its name; `problem` says whether it is whole."""
    return next(reversed(every(run_folder)), None)


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, with its file; None where every byte is as it was written.
    Reads all of it. Raises OSError where it cannot be read: that is no damage."""
    if not (folder / MANIFEST).is_file():
        return f"{folder / MANIFEST} is missing"
    try:
        written = json.loads((folder / MANIFEST).read_text())
        sizes = {name: int(entry["bytes"]) for name, entry in written.items()}
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes, {size} were written"
        for name, digest in digests(folder).items():
            if name in written and digest != written[name]["sha256"]:
                return f"{folder / name} is not what was written: its checksum is another"
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return f"{folder / MANIFEST} is not a manifest"
    return None if DRIVER in written else f"{folder / DRIVER} is not in {MANIFEST}"


def resumable(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line for each folder that was passed over. A damaged
    checkpoint gets another name, so that its step can be written again. Of the run's writer only.
    """
    said = [
        f"{path} is not a checkpoint and is left alone"
        for path in sorted((run_folder / "checkpoints").glob("step-*"))
        if path not in every(run_folder)
    ]
    for folder in reversed(every(run_folder)):
        found = problem(folder)
        if found is None:
            return folder, said
        if not (folder / MANIFEST).exists() and (folder / DRIVER).is_file():
            with contextlib.suppress(Damaged):
                _fields(folder)  # of an older version, which wrote no manifest: refused, kept
        aside = _free(folder.with_name(f"{DAMAGED}{folder.name}"))
        folder.rename(aside)
        said.append(f"{found}; {folder.name} is passed over, and is now {aside.name}")
    return None, said


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
    try:
        fields = json.loads((folder / DRIVER).read_text())
        if fields["format"] == FORMAT and not {"state", "recipe"} <= fields.keys():
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Damaged(f"{folder / DRIVER} is damaged; remove {folder.name}") from None
    if fields["format"] != FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {fields['format']}, this version reads {FORMAT}; "
            "use the version that began the run, or start a new one"
        )
    return fields


def every(run_folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    found = (run_folder / "checkpoints").glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d{8}", path.name))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but its manifest, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor() as threads:  # hashing holds no lock
        return dict(zip(names, threads.map(_sha256, paths), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(path: Path) -> Path:
    """This path, or with -2, -3 ... at its end where that is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _full(folder: Path) -> OSError | None:
    """The error of writing a little into a folder, where there is no room."""
    path = folder / "probe"
    try:
        path.write_bytes(bytes(PROBE))
    except OSError as error:
        return error if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    finally:
        path.unlink(missing_ok=True)
    return None


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
