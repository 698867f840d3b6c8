"""What a prompt needs to be judged by GenEval's rules: its record, held to its form.

    {"tag": "position", "include": [{"class": "dog", "count": 1},
     {"class": "cat", "count": 1, "position": ["left of", 0]}], "exclude": [...]}

A record that is only nearly right would be judged, too: a misspelt key demands nothing, and a
colour that no detector names is never seen.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from percent_ray.scorers.geneval import MAX_BOXES

TAGS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tasks."""
RELATIONS: Final = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a detector can tell apart."""

    colors: tuple[str, ...]
    classes: tuple[str, ...] | None
    """None where only the loaded detector knows: that of a hub id."""


def vocabulary(path: str) -> Vocabulary:
    """That of the detector of a `path`; the embedded world's where empty."""
    if path:
        from percent_ray.scorers import detector

        return Vocabulary(detector.COLORS, detector.classes(path))
    from percent_ray.shapes import scenes

    return Vocabulary(tuple(scenes.COLORS), scenes.SHAPES)


def check(metadata: Mapping[str, Any] | None, known: Vocabulary) -> None:
    """Raises ValueError that says what is wrong with a prompt's record."""
    if not metadata:
        raise ValueError(
            "has no record of GenEval's; give a .jsonl with tag and include, or leave geneval out"
        )
    _keys(metadata, ("tag", "include", "exclude"), needed=("tag", "include"), what="the record")
    _one_of(metadata["tag"], TAGS, "tag")
    include = _entries(metadata["include"], "include")
    if not include:
        raise ValueError("include is empty; give one object or more")
    for number, wanted in enumerate(include):
        _wanted(wanted, number, known)
    for number, banned in enumerate(_entries(metadata.get("exclude", []), "exclude")):
        where = f"exclude[{number}]"
        _keys(banned, ("class", "count"), needed=("class", "count"), what=where)
        _object(banned, where, known)
        for other in include:
            if other["class"] == banned["class"] and other["count"] >= banned["count"]:
                raise ValueError(
                    f"{where} forbids {banned['count']} of {banned['class']!r} and include wants "
                    f"{other['count']}; no picture has both"
                )


def _wanted(wanted: Mapping[str, Any], number: int, known: Vocabulary) -> None:
    where = f"include[{number}]"
    keys = ("class", "count", "color", "position")
    _keys(wanted, keys, needed=("class", "count"), what=where)
    _object(wanted, where, known)
    if "color" in wanted:
        _one_of(wanted["color"], known.colors, f"{where}.color")
    if "position" not in wanted:
        return
    if "color" in wanted:
        raise ValueError(f"{where} has color and position; the reward reads one of them")
    position = wanted["position"]
    if not isinstance(position, list) or len(position) != 2:
        raise ValueError(f'{where}.position is {_shown(position)}; give one such as ["above", 0]')
    relation, other = position
    _one_of(relation, RELATIONS, f"{where}.position[0]")
    if not _is_whole(other) or not 0 <= other < number:
        some = f"0 to {number - 1}" if number else "none, for it is the first"
        raise ValueError(
            f"{where}.position[1] is {_shown(other)}; the objects before it are {some}"
        )


def _object(entry: Mapping[str, Any], where: str, known: Vocabulary) -> None:
    name, count = entry["class"], entry["count"]
    if known.classes is not None:
        _one_of(name, known.classes, f"{where}.class")
    elif not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}.class is {_shown(name)}; give an object's name")
    if not _is_whole(count) or not 1 <= count <= MAX_BOXES:
        raise ValueError(f"{where}.count is {_shown(count)}; give 1 to {MAX_BOXES}")


def _entries(value: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{name} is {_shown(value)}; give a list of objects with class and count")
    return value


def _keys(
    entry: Mapping[str, Any], known: Collection[str], *, needed: Collection[str], what: str
) -> None:
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            meant = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise ValueError(f"{what} has an unknown key {_shown(key)}; {meant}")
    for key in needed:
        if key not in entry:
            raise ValueError(f"{what} has no {key}")


def _one_of(value: Any, known: Collection[str], name: str) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {_shown(value)}; known are {', '.join(known)}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
