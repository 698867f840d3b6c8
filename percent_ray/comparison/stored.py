"""Reads what the runs of a comparison have left in their folders, and says which file is damaged
and what becomes of it."""

import json
import math
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from percent_ray.evaluation.quality import SPACES
from percent_ray.recipe import strict_yaml
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.recipe.errors import short

RESULT = "evaluation.json"
"""In a finished run's folder: the protocol, and the metrics of its checkpoints by version. That of
the base model has the pool too, and the metrics of choosing from it ever more strictly."""
PICTURES = "pictures.npz"
"""The last checkpoint's pictures: `images` uint8 [P, K, 3, H, W]."""

MEASURED = [2, *SPACES]
"""What a result says that it has measured: raise the number where a measure changes its meaning."""

Metrics = Mapping[str, float]


class Damaged(ValueError):
    """Of a result, in one line with its file: the comparison judges the folder again."""

    def __init__(self, folder: Path, problem: str) -> None:
        again = "run the comparison without --report, which judges it again"
        super().__init__(f"{folder / RESULT}: {problem}; {again}")


def result(folder: Path) -> dict[str, Any]:
    """What is in a folder's `RESULT`, its `versions` by number; empty where there is none, or one
    that an earlier version has measured in other spaces: it is to be judged again. Raises
    Damaged."""
    path = folder / RESULT
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(folder, f"is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise Damaged(folder, f"holds {_shown(found)}, needs the metrics of checkpoints")
    if found.get("measured") != MEASURED:
        return {}
    versions, chosen = found.get("versions"), found.get("strengths", [])
    if not isinstance(versions, dict) or not versions:
        raise Damaged(folder, f"versions is {_shown(versions)}, needs metrics by version")
    if wrong := [name for name in versions if not re.fullmatch("[0-9]{1,9}", name)]:
        raise Damaged(folder, f"versions has {short(wrong[0])}, needs the numbers of steps")
    if not isinstance(chosen, list):
        raise Damaged(folder, f"strengths is {_shown(chosen)}, needs a list of metrics")
    units = found.get("units", {})
    if not isinstance(units, dict) or not all(isinstance(unit, str) for unit in units.values()):
        raise Damaged(folder, f"units is {_shown(units)}, needs a text for each judge")
    found |= {"versions": {int(v): metrics for v, metrics in versions.items()}, "strengths": chosen}
    for where, metrics in _every(found):
        if not isinstance(metrics, dict):
            raise Damaged(folder, f"{where} is {_shown(metrics)}, needs metrics")
        if wrong := [name for name, value in metrics.items() if not _is_number(value)]:
            value = _shown(metrics[wrong[0]])
            raise Damaged(folder, f"{where}: {short(wrong[0])} is {value}, needs a number")
    return found


def require(folder: Path, found: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises Damaged where some metrics of a result lack a name."""
    for where, metrics in _every(found):
        if missing := [name for name in names if name not in metrics]:
            raise Damaged(folder, f"{where} has no {', '.join(missing)}")


def require_finite(folder: Path, found: Mapping[str, Any], instead: str) -> None:
    """Raises ValueError, with what to do `instead`, where a metric of a result is not finite."""
    for where, metrics in _every(found):
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"{folder / RESULT}: {where}: {name} is {value}; {instead}")


def pictures(folder: Path) -> np.ndarray:
    """Of the last checkpoint, uint8 [P, K, 3, H, W]. Raises ValueError."""
    path = folder / PICTURES
    again = f"delete {RESULT} beside it and run the comparison, which judges it again"
    try:
        with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
            images = np.lib.format.read_array(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: is not there; {again}") from None
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        words = " ".join(str(error).split()).strip("'\"")
        raise ValueError(f"{path}: is damaged ({words}); {again}") from None
    if images.dtype != np.uint8 or images.ndim != 5:
        held = f"{images.dtype} of shape {list(images.shape)}"
        raise ValueError(f"{path}: holds {held}, needs uint8 [P, K, 3, H, W]; {again}")
    return images


def recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe that a run was made with, not validated: it may be an older version's; None where
    there is none. Raises ValueError."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return None
    instead = "restore it, or delete it: the comparison keeps the run beside and trains it anew"
    try:
        found = strict_yaml.read(path)
    except ValueError as error:
        raise ValueError(f"{error}; {instead}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {_shown(found)}, needs the recipe's sections; {instead}")
    return found


def _every(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where a result has metrics, and the metrics."""
    for version, metrics in found["versions"].items():
        yield f"version {version}", metrics
    for number, metrics in enumerate(found.get("strengths", ())):
        yield f"strengths[{number}]", metrics


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**53)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return f"{'a' if value else 'an empty'} {type(value).__name__}"
    return short(value)
