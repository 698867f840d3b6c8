"""A file that is whole or not there."""

import os
from pathlib import Path


def write(path: Path, contents: str | bytes) -> None:
    """Write a file all at once: a full disk or an end in between leaves what was there before.
    Makes its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    os.replace(aside, path)
