"""Seconds from the start of the embedded job to its first sampled group, through Ray.

    python benchmarks/startup.py [job arguments]

Starts `jobs/train_pec.py` for one step in a folder of its own and reads the first sampling span out
of its spans file. Prints one JSON line.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = Path(__file__).parents[1] / "jobs" / "train_pec.py"


def measure(arguments: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        subprocess.run(
            [
                *(sys.executable, str(JOB), "--run.steps", "1", "--monitor.probe_every", "0"),
                *("--run.folder", folder, "--run.name", "startup", *arguments),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        stop = time.time()
        lines = (Path(folder) / "startup" / "spans.jsonl").read_text().splitlines()
        spans = [json.loads(line) for line in lines]
        first = min(span["start"] for span in spans if span["stage"] == "sample")
        done = min(span["stop"] for span in spans if span["stage"] == "sample")
    return {
        "benchmark": "startup",
        "first_sample_starts_s": round(first - start, 1),
        "first_sample_done_s": round(done - start, 1),
        "job_s": round(stop - start, 1),
        "target_s": 45,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
