"""What a study has on disk: its key, which stays with the experimenter, and annotators' answers,
which come from outside and are trusted in nothing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

KEY = "key.json"
QUESTIONS = ("overall", "diversity", "quality")
MOST_BYTES = 1_000_000
"""Of a file of answers; 20 pairs take 2 kB."""

Study = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Choice = Literal["set_1", "none", "set_2"] | None
"""An answer as it stands on the page; None where there is none."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


AnyRecord = TypeVar("AnyRecord", bound=Record)


class KeyRow(Record):
    label: str
    folder: str


class KeyPair(Record):
    pair: PositiveInt
    """As the page counts, from 1."""
    prompt: NonNegativeInt
    """Place in the evaluation's prompts.jsonl."""
    text: str
    set_1: Literal["A", "B"]
    """The row that is shown as Set 1."""


class Key(Record):
    """Which side is which."""

    study: Study
    row_a: KeyRow
    row_b: KeyRow
    seed: int
    images: PositiveInt
    pairs: tuple[KeyPair, ...]


class Answer(Record):
    pair: PositiveInt
    overall: Choice
    diversity: Choice
    quality: Choice


class Answers(Record):
    """What one annotator downloads from the page."""

    study: Study
    annotator: Annotated[str, Field(min_length=1, max_length=64)]
    answers: Annotated[tuple[Answer, ...], Field(max_length=10_000)]


def read_answers(paths: Sequence[Path], key: Key) -> list[Answers]:
    """The answers of every file to the study of `key`.

    Raises ValueError that names the file: damaged, of another study, with a pair that the study
    has not or that is answered twice, or a second one of the same annotator (names are compared
    without case and outer blanks). Of two files nobody but the experimenter knows which one counts.
    """
    found: dict[str, Path] = {}
    read = []
    for path in paths:
        if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{path} has {size:,} bytes; a file of answers has 2,000 or so")
        answers = _read(path, Answers, "a file of answers")
        if answers.study != key.study:
            raise ValueError(
                f"{path} answers study {answers.study}, and the key is of study {key.study}"
            )
        if not answers.annotator.isprintable() or not answers.annotator.strip():
            raise ValueError(f"{path}: annotator {answers.annotator!r} is no name")
        numbers = [answer.pair for answer in answers.answers]
        if twice := {number for number in numbers if numbers.count(number) > 1}:
            raise ValueError(f"{path} answers pair {min(twice)} twice")
        if numbers and max(numbers) > len(key.pairs):
            raise ValueError(
                f"{path} answers pair {max(numbers)}; the study has {len(key.pairs)} pairs"
            )
        name = answers.annotator.strip().casefold()
        if name in found:
            raise ValueError(
                f"{path} and {found[name]} are both of annotator {answers.annotator}; leave out "
                "the one that does not count"
            )
        found[name] = path
        read.append(answers)
    return read


def find_key(answers: Sequence[Path]) -> Path:
    """The key beside the first file of answers, or in the folder above.

    Raises ValueError where there is none.
    """
    places = [answers[0].resolve().parent, answers[0].resolve().parent.parent]
    for place in places:
        if (place / KEY).is_file():
            return place / KEY
    raise ValueError(f"no {KEY} in {places[0]} nor in {places[1]}; set --key")


def read_key(path: Path) -> Key:
    """Raises ValueError for a file that is no key."""
    return _read(path, Key, "a study's key")


def write_key(key: Key, path: Path) -> None:
    """Readable by its owner alone.

    Raises ValueError where `path` is the key of another study, whose answers would be lost.
    """
    if path.exists() and (other := read_key(path).study) != key.study:
        raise ValueError(
            f"{path} is the key of another study, {other}, and its answers are worth nothing "
            "without it; set --to to a new folder"
        )
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(handle, 0o600)  # also of a file that was there
        file.write(key.model_dump_json(indent=1))


def _read(path: Path, kind: type[AnyRecord], what: str) -> AnyRecord:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = f"{where}: {problem['msg']}".removeprefix(": ")[:200]
        # A key's name in the file may hold what a terminal would obey.
        said = "".join(letter if letter.isprintable() else " " for letter in said)
        raise ValueError(f"{path} is not {what}: {said}") from None
