"""The metrics file of a run, `metrics.jsonl`: everything that was measured, one line a step.

A line is {"step": 3, "time": seconds since the epoch, "metrics": {...}}. JSON has no NaN: a value
that is not finite is written as null and read back as NaN. A step may have several lines (a probe
has its own; a resumed run repeats steps that its checkpoint lacked): the later value counts.
"""

import json
import math
import time
from collections.abc import Mapping
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
        if torn:  # the last run was killed within a line
            self._file.write("\n")

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step."""
        values = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), "metrics": values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, in order of steps; torn lines are passed over."""
    steps: dict[int, dict[str, float]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        values = {k: math.nan if v is None else v for k, v in line["metrics"].items()}
        steps.setdefault(line["step"], {}).update(values)
    return dict(sorted(steps.items()))
