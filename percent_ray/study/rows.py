"""Rows of an evaluation and their kept pictures: rows/SLUG/row.json, rows/SLUG/pictures/P/I.png."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROMPT = re.compile(r"\d{5,}")
"""Name of the folder of a prompt's pictures."""
PICTURE = re.compile(r"\d{3,}\.png")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an evaluation."""

    folder: Path
    label: str
    pictures: Mapping[int, list[Path]]
    """Files in order of their number, by the prompt's place in prompts.jsonl."""
    ignored: int
    """Entries among the pictures with names of another form."""


def find(name: str, evaluation: Path) -> Row:
    """The row whose slug, folder or label is `name`.

    Raises ValueError where there is none, where two rows have the label, and where the row has kept
    no pictures.
    """
    for folder in (evaluation / "rows" / name, Path(name)):
        if (folder / "row.json").is_file():
            return _read(folder)
    labels = {path.parent: _label(path) for path in sorted(evaluation.glob("rows/*/row.json"))}
    if not labels:
        raise ValueError(
            f"{evaluation} holds no evaluated rows; run jobs/evaluate.py with --keep, or set "
            "--evaluation"
        )
    named = [folder for folder, label in labels.items() if label == name]
    if len(named) > 1:
        slugs = ", ".join(folder.name for folder in named)
        raise ValueError(f"{len(named)} rows of {evaluation} are labelled {name}: name {slugs}")
    if not named:
        raise ValueError(f"{evaluation} has no row {name}; it has {', '.join(labels.values())}")
    return _read(named[0])


def _read(folder: Path) -> Row:
    pictures: dict[int, list[Path]] = {}
    ignored = 0
    for place in sorted(folder.glob("pictures/*")):
        if not place.is_dir() or not PROMPT.fullmatch(place.name):
            ignored += 1
            continue
        files = sorted(place.iterdir(), key=lambda path: (len(path.name), path.name))
        pictures[int(place.name)] = [path for path in files if PICTURE.fullmatch(path.name)]
        ignored += len(files) - len(pictures[int(place.name)])
    if not any(pictures.values()):
        raise ValueError(f"{folder} holds no pictures; run jobs/evaluate.py again with --keep")
    return Row(folder, _label(folder / "row.json"), pictures, ignored)


def _label(path: Path) -> str:
    try:
        label = json.loads(path.read_text(encoding="utf-8"))["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} is not a row's: expected an object with 'label'") from None
    if not isinstance(label, str) or not label:
        raise ValueError(f"{path}: 'label' needs text, is {label!r}")
    return label
