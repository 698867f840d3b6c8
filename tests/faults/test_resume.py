"""Whole runs in processes of their own, killed and resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from percent_ray.monitor import history
from percent_ray.recipe import load as recipes
from tests.end_to_end import world as worlds

JOB = Path(__file__).parents[2] / "jobs" / "train_pec.py"


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(JOB), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def metrics(run: Path) -> dict[int, dict[str, float]]:
    clocks = (*worlds.CLOCKS, "probe/")
    return {
        step: {name: value for name, value in values.items() if not name.startswith(clocks)}
        for step, values in history.read(run / "metrics.jsonl").items()
    }


def assert_same_weights(run: Path, other: Path) -> None:
    *_, last = sorted((other / "checkpoints").glob("step-*"))
    weights = f"checkpoints/{last.name}/policy/pytorch_lora_weights.safetensors"
    ours, theirs = load_file(run / weights), load_file(other / weights)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def write_recipe(world: Path, runs: Path, name: str, process: str = "reverse") -> Path:
    recipe = worlds.recipe(world, runs, backend="local")
    if process == "forward":
        recipe = worlds.normalized(worlds.forward(recipe))
    if process == "tiny decoder":
        recipe = worlds.with_tiny_decoder(recipe, world)
    changed = recipe.model_copy(
        update={"run": recipe.run.model_copy(update={"name": name, "steps": 6})}
    )
    path = runs / f"{name}.yaml"
    path.write_text(recipes.dump(changed))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        "reverse",
        pytest.param("forward", marks=pytest.mark.study),
        pytest.param("tiny decoder", marks=pytest.mark.study),
    ],
)
def test_invariant_8_a_killed_and_resumed_run_equals_the_straight_run(world, tmp_path, way):
    straight = tmp_path / "straight"
    output = finish(start("--config", str(write_recipe(world, tmp_path, "straight", way))))
    assert "step 6/6" in output
    killed = tmp_path / "killed"
    process = start("--config", str(write_recipe(world, tmp_path, "killed", way)))
    while not (killed / "checkpoints" / "step-00000002").is_dir():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "checkpoints" / "step-00000006").exists()
    finish(start("--resume", str(killed)))
    assert metrics(killed) == metrics(straight)
    assert_same_weights(killed, straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "backend", "number"),
    [
        ("reverse", "local", signal.SIGTERM),
        pytest.param("forward", "local", signal.SIGINT, marks=pytest.mark.study),
        pytest.param("reverse", "ray", signal.SIGINT, marks=pytest.mark.study),
    ],
)
def test_invariant_11_a_stopped_and_resumed_run_equals_the_straight_run(
    world, tmp_path, process, backend, number
):
    """Stopped behind a step between two checkpoints, with groups in flight that older weights than
    the newest have drawn."""
    flags = ("--runtime.backend", backend, "--run.checkpoint_every", "11", "--run.steps", "12")
    straight, run = tmp_path / "straight", tmp_path / "stopped"
    finish(start("--config", str(write_recipe(world, tmp_path, "straight", process)), *flags))
    job = start("--config", str(write_recipe(world, tmp_path, "stopped", process)), *flags)
    while not (run / "metrics.jsonl").is_file() or not metrics(run).get(2):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.send_signal(number)
    if number == signal.SIGTERM:
        job.send_signal(number)  # `timeout` sends it to the child and to its group
    finish(job)
    [stopped] = (run / "checkpoints").glob("step-*")
    assert list((stopped / "older").glob("*.arrow")), "the case that this test is about"
    finish(start("--resume", str(run)))
    assert metrics(run) == metrics(straight)
    assert_same_weights(run, straight)


@pytest.mark.slow
def test_what_resume_refuses_is_one_line_and_leaves_the_recipe_as_it_was(world, tmp_path):
    config = write_recipe(world, tmp_path, "once")
    prompts = Path(shutil.copy(world / "prompts.txt", tmp_path))
    finish(start("--config", str(config), "--run.steps", "2", "--data.prompts", str(prompts)))
    run = tmp_path / "once"
    recipe = (run / "recipe.yaml").read_text()

    def refused(options: str) -> str:
        output = finish(start("--resume", str(run), *options.split()), code=2)
        [line] = [line for line in output.splitlines() if line.startswith("error:")]
        assert (run / "recipe.yaml").read_text() == recipe, options
        return line

    assert "sampling.noise_level was 0.7, is 0.9" in refused("--sampling.noise_level 0.9")
    assert "run.steps 1: " in refused("--run.steps 1")
    zero = "cannot be resumed by ZeRO stage 1 on 1 learner(s); set runtime.backend local"
    assert zero in refused("--runtime.backend ray")
    prompts.write_text(prompts.read_text() + "a cat\n")
    assert "prompts.txt is not what the run began with; put that" in refused("--run.steps 3")
