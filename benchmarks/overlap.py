"""What overlap is worth, and what perception costs under it.

    python benchmarks/overlap.py [--steps 4]
    python benchmarks/overlap.py --overhead [--steps 4]

Without a flag: seconds a step of the embedded job with staleness 0 and 1, and the share of time in
which two stages work at once.

`--overhead` is the paper's table 4 (arXiv 2605.12112): the time of an iteration of PEC over that of
Flow-GRPO, perception in a pool of its own. On two cores three pools share what would be three
machines, so the models are the stand-ins of `scale.py`, which sleep for an H100's times of SD3.5-M:
Flow-GRPO perceives finished images only, PEC every scored step too (`perceive_s` of the baseline),
each with as many perception workers as keep up. The loop, the cluster, the pools and the tables are
the real ones.

Each runs its sides in one call, one after the other, and prints one JSON line with the ratio.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import scale

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


def overhead(steps: int) -> dict[str, Any]:
    """PEC / Flow-GRPO, by what an image's perception takes."""
    perceive_s = {
        "flow_grpo": scale.BASELINE["perceive_s"]["marginal"],
        "pec": scale.BASELINE["perceive_s"]["3_steps"],
        "pec, all steps": scale.BASELINE["perceive_s"]["all_steps"],
    }
    found = {
        name: scale.measure(2, steps=steps, images=24, store_gb=3.0, perceive_s=seconds)
        for name, seconds in perceive_s.items()
    }
    plain = found["flow_grpo"]["step_s"]
    return {
        "benchmark": "overhead",
        "step_s": {name: one["step_s"] for name, one in found.items()},
        "perception_workers": {name: one["perception_workers"] for name, one in found.items()},
        "pec / flow_grpo": round(found["pec"]["step_s"] / plain, 3),
        "pec, all steps / flow_grpo": round(found["pec, all steps"]["step_s"] / plain, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="learner steps of each run")
    parser.add_argument("--overhead", action="store_true", help="PEC / Flow-GRPO, as in table 4")
    arguments = parser.parse_args()
    print(json.dumps((overhead if arguments.overhead else measure)(arguments.steps)))


if __name__ == "__main__":
    main()
