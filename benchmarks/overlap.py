"""What overlap is worth: seconds a step with staleness 0 and 1, and the share of time in which two
stages work at once.

    python benchmarks/overlap.py [--steps 4]

Runs the embedded job twice through Ray, synchronous and one version ahead, in one call. Prints one
JSON line with the ratio.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from percent_ray.monitor import history
from percent_ray.monitor.spans import overlap
from percent_ray.types import Span

JOB = Path(__file__).parents[1] / "jobs" / "train_pec.py"


def run(staleness: int, steps: int, folder: Path) -> dict[str, float]:
    """Mean seconds of a step after the first, and the overlap of the whole run."""
    name = f"staleness-{staleness}"
    subprocess.run(
        [
            *(sys.executable, str(JOB), "--run.steps", str(steps), "--run.folder", str(folder)),
            *("--run.name", name, "--runtime.max_staleness", str(staleness)),
            *("--monitor.probe_every", "0", "--run.checkpoint_every", str(steps)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    metrics = history.read(folder / name / "metrics.jsonl")
    seconds = [values["time/step_s"] for step, values in metrics.items() if step > 0]
    lines = (folder / name / "spans.jsonl").read_text().splitlines()
    spans = [Span(**json.loads(line)) for line in lines]
    return {"step_s": sum(seconds) / len(seconds), "overlap": overlap(spans)}


def measure(steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        synchronous, ahead = (run(staleness, steps, Path(folder)) for staleness in (0, 1))
    return {
        "benchmark": "overlap",
        "step_s": {"staleness_0": synchronous["step_s"], "staleness_1": ahead["step_s"]},
        "overlap": {"staleness_0": synchronous["overlap"], "staleness_1": ahead["overlap"]},
        "speedup": synchronous["step_s"] / ahead["step_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="learner steps of each run")
    print(json.dumps(measure(parser.parse_args().steps)))


if __name__ == "__main__":
    main()
