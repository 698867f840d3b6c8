"""Text files that people write, line by line, and the JSON in their lines."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, with a byte order mark or without, stripped, with their numbers
    from 1; blank ones are left out. Raises ValueError, with file and line, for another encoding
    and for line ends of old Macs, which would make one line of all."""
    contents = path.read_bytes()
    if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: is UTF-16; save it as UTF-8")
    for number, line in enumerate(contents.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from None
        if "\r" in text:
            raise ValueError(
                f"{path}:{number}: a line ends with a carriage return alone; save the file with "
                "line feeds"
            )
        if text:
            yield number, text


def json_object(line: str) -> dict[str, Any]:
    """The object that a line is. Raises ValueError for anything else, for a key given twice, for
    NaN and infinities, and for more levels than can be read."""
    try:
        fields = json.loads(line, object_pairs_hook=_once, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}, at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("not JSON that a prompt has: too many levels") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with 'prompt', got {line[:40]}")
    return fields


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"key {name!r} is given twice")
    return dict(pairs)
