"""The metrics file of a run, `metrics.jsonl`: everything that was measured, one line a step.

A line is {"step": 3, "time": seconds since the epoch, "metrics": {...}}. JSON has no NaN: a value
that is not finite is written as null and read back as NaN. A step may have several lines (a probe
has its own; a resumed run repeats steps that its checkpoint lacked): the later value counts.
"""

import contextlib
import errno
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

FILE = "metrics.jsonl"
"""In a run's folder."""


class History:
    """Appends to a metrics file. A line is in the file when `append` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        self._one = threading.Lock()
        """A line at a time: probes are recorded by another thread."""
        if torn:  # the last run was killed within a line
            self._file.write("\n")

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step. Raises OSError, with the path, where that cannot be done:
        the disk is full, or the file was deleted, which a write into it would not tell."""
        values = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), "metrics": values}
        with self._one:
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            if not os.fstat(self._file.fileno()).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "it was deleted", str(self.path))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a line that `append` could not write, and said so
            self._file.close()


def read(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, in order of steps; torn lines are passed over."""
    steps: dict[int, dict[str, float]] = {}
    for line in _lines(path):
        if line is not None:
            steps.setdefault(line[0], {}).update(line[1])
    return dict(sorted(steps.items()))


def damaged(path: Path) -> list[int]:
    """Numbers, from 1, of the lines that `read` passes over."""
    return [number for number, line in enumerate(_lines(path), start=1) if line is None]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, float]] | None]:
    """(step, metrics) of each line; None of one that is torn."""
    # Not splitlines(), which also parts at U+2028 and the like.
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.split("\n")[: -1 if text.endswith("\n") or not text else None]:
        try:
            found = json.loads(line)
            step, metrics = int(found["step"]), dict(found["metrics"])
            yield step, {k: math.nan if v is None else float(v) for k, v in metrics.items()}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            yield None
