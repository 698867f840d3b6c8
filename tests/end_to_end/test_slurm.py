"""cluster/slurm.sh as Slurm would run it, with stand-ins for `srun` and `scontrol`: two nodes that
are this machine twice, a time limit that comes near, and the requeued job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from percent_ray.monitor import history
from percent_ray.recipe import load as recipes
from tests.end_to_end import world as worlds

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; else echo "$*" >>"$REQUEUED"; fi
"""


@pytest.fixture
def job(world, tmp_path):
    """Starts the script with flags for the recipe; two nodes of one core each."""
    recipe = worlds.recipe(world, tmp_path / "unused")
    (tmp_path / "recipe.yaml").write_text(recipes.dump(recipe))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "RUNS": str(tmp_path / "runs"),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> subprocess.Popen[str]:
        command = [ROOT / "cluster" / "slurm.sh", tmp_path / "recipe.yaml", *flags]
        process = subprocess.Popen(
            [str(word) for word in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.study
@pytest.mark.ray
def test_before_its_time_limit_it_goes_back_into_the_queue_and_then_on(job, tmp_path):
    run = tmp_path / "runs" / f"slurm-{os.getpid()}"
    first = job("--run.steps", "12", "--run.checkpoint_every", "50")
    while not (run / "metrics.jsonl").is_file() or not history.read(run / "metrics.jsonl"):
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    first.send_signal(signal.SIGUSR1)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert "back into the queue" in said
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert len(list((run / "checkpoints").glob("step-*"))) == 1

    again = job("--run.steps", "12", "--run.checkpoint_every", "50")
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert f"--resume {run}" in said
    assert sorted(step for step, values in history.read(run / "metrics.jsonl").items() if values)[
        -1
    ] in (11, 12)
    assert (tmp_path / "requeued").read_text().count("requeue") == 1
    assert not list(ROOT.glob(".slurm-token-*")), "the token ends with its job"


@pytest.mark.study
@pytest.mark.ray
def test_what_the_user_can_set_right_ends_the_job_with_its_code(job, tmp_path):
    process = job("--run.stepps", "12")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 2, said
    assert "run.stepps" in said
    assert not (tmp_path / "requeued").exists()
