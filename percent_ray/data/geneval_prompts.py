"""Training prompts of GenEval's form, none of which is one of the benchmark's own."""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from percent_ray.data import lines
from percent_ray.scorers import geneval_record

Record = dict[str, Any]
"""GenEval's: tag, include, exclude, prompt."""
SHARES: Final = {
    "position": 6,
    "two_object": 5,
    "counting": 4,
    "color_attr": 3,
    "colors": 1,
    "single_object": 0,
}
"""Parts of the groups by task: more of what models are bad at (docs/tuning.md)."""
OPPOSITE: Final = {"right of": "left of", "below": "above"}
NUMBERS: Final = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True, slots=True)
class Words:
    """What a benchmark's prompts are made of."""

    classes: tuple[str, ...]
    colors: tuple[str, ...]
    relations: tuple[str, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(records: Sequence[Record]) -> "Words":
        """Those of its own prompts, in alphabetical order."""
        wanted = [entry for record in records for entry in record["include"]]
        return Words(
            tuple(sorted({entry["class"] for entry in wanted})),
            tuple(sorted({entry["color"] for entry in wanted if "color" in entry})),
            tuple(sorted({entry["position"][0] for entry in wanted if "position" in entry})),
            tuple(sorted({entry["count"] for entry in wanted if entry["count"] > 1})),
        )


def read(path: Path) -> list[Record]:
    """The records of a .jsonl. Raises ValueError, with its line, for one that is none."""
    records: list[Record] = []
    for number, line in lines.numbered(path):
        try:
            record = lines.json_object(line)
            if not isinstance(record.get("prompt"), str):
                raise ValueError("no text under 'prompt'")
            bare = {key: value for key, value in record.items() if key != "prompt"}
            geneval_record.check(bare, _own(record.get("include")))
            if record["tag"] == "position" and len(record["include"]) != 2:
                raise ValueError("a position is of two objects")
            if record["tag"] == "position" and "position" not in record["include"][1]:
                raise ValueError("a position needs the place of its second object: position")
            if more := [e["count"] for e in record["include"] if e["count"] not in NUMBERS]:
                raise ValueError(f"{more[0]} of an object: counts are written up to {max(NUMBERS)}")
            records.append(record)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return records


def _own(include: Any) -> geneval_record.Vocabulary:
    """The colours of a record: whatever a detector may know."""
    entries = include if isinstance(include, list) else []
    colors = [entry.get("color") for entry in entries if isinstance(entry, dict)]
    return geneval_record.Vocabulary(tuple(c for c in colors if isinstance(c, str)), None)


def make(
    held_out: Sequence[Record], *, count: int, shares: Mapping[str, int], seed: int
) -> dict[str, list[Record]]:
    """About `count` training records by task, in parts of `shares`, made of the words of the
    records that are held out, none of which is among them: nor the same objects in another order.

    A function of `seed`. Tasks of few records have each of them several times. Raises ValueError
    for an unknown task, where a task has no record that is not held out, and where none is made.
    """
    words, total = Words.of(held_out), sum(shares.values())
    taken = {meaning(record) for record in held_out}
    rng = np.random.default_rng(seed)
    made: dict[str, list[Record]] = {}
    for task, share in shares.items():
        if task not in TASKS:
            raise ValueError(f"no task {task!r}; GenEval has {', '.join(TASKS)}")
        asked = round(count * share / total)
        if not asked:
            continue
        free = _free(task, words, taken)
        if not free:
            raise ValueError(f"{task}: every record of these words is held out; set its share to 0")
        rounds = [rng.permutation(len(free)) for _ in range(-(-asked // len(free)))]
        made[task] = [free[i] for i in np.concatenate(rounds)[:asked]]
    if not made:
        raise ValueError(f"{count} prompts are less than one of any task; give more")
    return made


def _free(task: str, words: Words, taken: Collection[Any]) -> list[Record]:
    """Every record of a task that is not `taken`, each meaning once."""
    seen: set[Any] = set(taken)
    free: list[Record] = []
    for record in TASKS[task](words):
        if (asked := meaning(record)) not in seen:
            seen.add(asked)
            free.append(record)
    return free


def meaning(record: Record) -> Any:
    """Equal for two records that ask for the same pictures: the same objects in another order, or
    an anchor and what lies left of it turned round."""
    if record["tag"] != "position":
        return record["tag"], tuple(sorted(_key(entry) for entry in record["include"]))
    anchor, other = record["include"]
    relation = other["position"][0]
    pair = anchor["class"], other["class"]
    if relation in OPPOSITE:
        relation, pair = OPPOSITE[relation], pair[::-1]
    return record["tag"], relation, pair


def _key(entry: Record) -> str:
    return json.dumps(entry, sort_keys=True)


def _record(tag: str, include: Sequence[Record], words: str, **more: Any) -> Record:
    return {"tag": tag, "include": list(include), **more, "prompt": f"a photo of {words}"}


def _entry(name: str, count: int = 1, **more: Any) -> Record:
    return {"class": name, "count": count, **more}


def _one(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _single_object(words: Words) -> Iterator[Record]:
    for name in words.classes:
        yield _record("single_object", [_entry(name)], _one(name))


def _two_object(words: Words) -> Iterator[Record]:
    for one, other in itertools.combinations(words.classes, 2):
        text = f"{_one(one)} and {_one(other)}"
        yield _record("two_object", [_entry(one), _entry(other)], text)


def _counting(words: Words) -> Iterator[Record]:
    for name, count in itertools.product(words.classes, words.counts):
        # As the benchmark has it: "two toothbrushs".
        plural = f"{name}es" if name.endswith("s") else f"{name}s"
        exclude = [_entry(name, count + 1)]
        text = f"{NUMBERS[count]} {plural}"
        yield _record("counting", [_entry(name, count)], text, exclude=exclude)


def _colors(words: Words) -> Iterator[Record]:
    for name, color in itertools.product(words.classes, words.colors):
        if name != "person":  # whom the benchmark does not paint
            yield _record("colors", [_entry(name, color=color)], _one(f"{color} {name}"))


def _position(words: Words) -> Iterator[Record]:
    for anchor, name in itertools.permutations(words.classes, 2):
        for relation in words.relations:
            include = [_entry(anchor), _entry(name, position=[relation, 0])]
            yield _record("position", include, f"{_one(name)} {relation} {_one(anchor)}")


def _color_attr(words: Words) -> Iterator[Record]:
    names = [name for name in words.classes if name != "person"]
    for one, other in itertools.combinations(names, 2):
        for first, second in itertools.permutations(words.colors, 2):
            include = [_entry(one, color=first), _entry(other, color=second)]
            text = f"{_one(f'{first} {one}')} and {_one(f'{second} {other}')}"
            yield _record("color_attr", include, text)


TASKS: Final = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
"""Every record of a task that there can be, of the given words."""
