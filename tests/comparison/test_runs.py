"""Real runs of tiny models, as tasks of a real Ray cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from percent_ray import run
from percent_ray.comparison import plan as plans
from percent_ray.comparison import results, runs, stored
from percent_ray.learn import checkpoint
from percent_ray.recipe import load as recipes
from tests.end_to_end import world as worlds


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """More than the runs are to use, and a GPU that is one in name only."""
    import ray

    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = worlds.build(tmp_path_factory.mktemp("world"))
    recipe = worlds.recipe(folder, folder, backend="local")
    (folder / "base.yaml").write_text(recipes.dump(recipe))
    comparison = {
        "base": "base.yaml",
        "name": "tiny",
        "folder": str(folder),
        "seeds": [1],
        "pool": 6,
        "evaluation": {
            "prompts": str(folder / "prompts.txt"),
            "images": 3,
            "steps": 2,
            "judges": ["pickscore"],
            "encoders": ["pickscore", "clip"],
        },
        "recipe": {"run": {"steps": 20, "checkpoint_every": 10, "keep_checkpoints": 99}},
        "rows": {
            "flow_grpo": {"label": "Flow-GRPO", "kind": "reference"},
            "broken": {"label": "broken", "recipe": {"model": {"resolution": 17}}},
        },
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(comparison, sort_keys=False))
    return path


def left(plan):
    return [(job.row, job.seed) for job in runs.unfinished(plan)]


def do(plan):
    ended = runs.run_all(runs.unfinished(plan), workers=2)
    return {(job.row, job.seed): error for job, error in ended}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def trained(folder: Path) -> list[int]:
    """The steps of a run's metrics file; one that was trained again is there twice."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [line["step"] for line in lines if "time/step_s" in line["metrics"]]


def made(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.every(folder)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.study
def test_runs_stop_after_a_step_go_on_where_they_stopped_and_are_judged_once(path, cluster):
    plan = plans.load(path, ["--run.steps", "400"])
    assert left(plan) == [("base", 0), ("flow_grpo", 1), ("broken", 1)]
    ended = runs.run_all(runs.unfinished(plan), workers=2)
    errors = {job.row: error for job, error in (next(ended), next(ended))}
    assert errors["base"] is None
    assert "model.resolution 17 does not fit" in errors["broken"]
    folder = plan.comparison.runs / "flow_grpo-1"
    wait_for(folder / "checkpoints" / "step-00000010")
    ended.close()
    reached = made(folder)[-1]
    assert 10 <= reached < 400
    assert trained(folder) == list(range(reached)), "the step at hand has a checkpoint"
    log = folder.with_suffix(".log").read_text()
    assert "/400  reward" in log, "the terminal's lines"
    assert f"stopped at step {reached} of 400" in log

    end = max(reached + 1, 21)  # a frontier needs three checkpoints
    shorter = plans.load(path, ["--run.steps", str(end)])
    assert left(shorter) == [("flow_grpo", 1), ("broken", 1)]
    shorter = plans.load(path, ["--run.steps", str(end)], rows=["flow_grpo"])
    assert do(shorter) == {("flow_grpo", 1): None}
    assert trained(folder) == list(range(end)), "no step was trained again"
    assert left(shorter) == []

    read = results.read(shorter)
    [run] = read.runs["flow_grpo"]
    assert sorted(run.evaluations) == [0, *made(folder)], "the base model's, and every checkpoint"
    assert run.evaluations[10]["vendi/clip"] != run.evaluations[0]["vendi/clip"]
    assert read.base_pictures().shape == (3, 3, 3, 16, 16)
    rewards = [chosen["quality/pickscore"] for chosen in read.selection]
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0]

    longer = plans.load(path, ["--run.steps", str(end + 1)], rows=["flow_grpo"])
    assert left(longer) == [("flow_grpo", 1)], "a finished run can be given more steps"
    [job] = runs.unfinished(longer)
    job.work()
    assert trained(folder) == list(range(end + 1))
    assert max(results.read(longer).runs["flow_grpo"][0].evaluations) == end + 1


def test_a_run_that_was_stopped_is_not_taken_for_finished(path, tmp_path, monkeypatch):
    short = ["--run.steps", "3", "--run.checkpoint_every", "1"]
    plan = plans.load(path, short, rows=["flow_grpo"], folder=str(tmp_path))
    recipe, protocol = plan.recipe("flow_grpo", 1), plan.comparison.evaluation
    listen = run._stop_on_signals

    def stop_at_once(loop):
        listen(loop)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "_stop_on_signals", stop_at_once)
    with pytest.raises(RuntimeError, match="stopped at step 1 of"):
        runs._train_and_judge(recipe, protocol)
    monkeypatch.undo()
    assert not runs.is_finished(recipe, protocol)
    runs._train_and_judge(recipe, protocol)
    assert runs.is_finished(recipe, protocol)

    path = results.folder_of(recipe) / stored.RESULT
    older = json.loads(path.read_text()) | {"measured": ["vae"]}
    path.write_text(json.dumps(older))
    assert not runs.is_finished(recipe, protocol), "judged in fewer spaces by an earlier version"
    assert not stored.result(results.folder_of(recipe))


def test_a_run_of_another_recipe_is_kept_beside(path, tmp_path):
    short = ["--run.steps", "3", "--run.checkpoint_every", "1"]
    plan = plans.load(path, short, rows=["flow_grpo"], folder=str(tmp_path), pool=0)
    recipe = plan.recipe("flow_grpo", 1)
    folder = results.folder_of(recipe)
    other = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"lr": 0.5})})
    run.train(other)
    assert [job.anew for job in runs.unfinished(plan)] == [False, True]
    before = sorted(path.name for path in folder.glob("checkpoints/*/*"))
    runs._train_and_judge(recipe, plan.comparison.evaluation)
    assert runs.is_finished(recipe, plan.comparison.evaluation)
    kept = folder.with_name("flow_grpo-1.before-1")
    assert sorted(path.name for path in kept.glob("checkpoints/*/*")) == before


def job(folder: Path, number: int, work) -> runs.Job:
    return runs.Job("row", number, folder / f"row-{number}", work)


def note(folder: Path, number: int, *, after: Path | None = None) -> None:
    """Leave behind when it was at work and with what; wait for a file first."""
    start = time.time()
    if after:
        wait_for(after)
    time.sleep(0.2)
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    seen = {"start": start, "stop": time.time(), **{name: os.environ.get(name) for name in names}}
    (folder / f"{number}.json").write_text(json.dumps(seen))
    print(f"job {number}")


def note_and_die(folder: Path, number: int) -> None:
    note(folder, number)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_end_in_their_own_time_and_a_dead_one_ends_no_other(cluster, tmp_path):
    jobs = [
        job(tmp_path, 0, partial(note, tmp_path, 0, after=tmp_path / "2.json")),
        job(tmp_path, 1, partial(note_and_die, tmp_path, 1)),
        job(tmp_path, 2, partial(note, tmp_path, 2)),
    ]
    ended = {job.seed: error for job, error in runs.run_all(jobs, workers=2)}
    assert next(iter(ended)) == 1
    assert [seed for seed, error in ended.items() if error] == [1]
    assert "WorkerCrashedError" in (ended[1] or "")
    assert "\n" not in (ended[1] or "")
    assert (tmp_path / "row-2.log").read_text() == "job 2\n"
    seen = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    assert seen[2]["start"] > seen[1]["stop"], "two at a time"
    assert seen[0]["start"] < seen[2]["start"] < seen[0]["stop"], "the first runs all along"
    assert {one["OMP_NUM_THREADS"] for one in seen} == {"1"}
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} == {""}, "no GPU was asked for"


@pytest.mark.ray
@pytest.mark.slow
def test_a_fraction_of_a_gpu_shares_a_card_and_too_many_are_refused(cluster, tmp_path):
    jobs = [job(tmp_path, number, partial(note, tmp_path, number)) for number in (0, 1)]
    assert [error for _, error in runs.run_all(jobs, workers=2, gpus=0.5)] == [None, None]
    seen = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["0", "0"]
    with pytest.raises(ValueError, match="asks for 2 and no machine has more than 1; set"):
        next(runs.run_all(jobs, workers=2, gpus=2))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_comparison_leaves_no_worker_behind(tmp_path):
    """And its own cluster has room for more workers than the machine has cores."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import os, time\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from percent_ray.comparison.runs import Job, run_all\n"
        "def work(path):\n"
        "    path.write_text(str(os.getpid()))\n"
        "    path.rename(path.with_suffix('.pid'))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        f"    folder, count = Path({str(tmp_path)!r}), os.cpu_count() + 1\n"
        "    jobs = [Job('row', n, folder / f'{n}', partial(work, folder / f'{n}.part'))"
        " for n in range(count)]\n"
        "    next(run_all(jobs, workers=count))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen([sys.executable, str(script)], env=environment)
    count = (os.cpu_count() or 1) + 1
    try:
        for number in range(count):
            wait_for(tmp_path / f"{number}.pid")
        workers = [Path("/proc") / (tmp_path / f"{n}.pid").read_text() for n in range(count)]
        assert all(worker.is_dir() for worker in workers)
    finally:
        driver.kill()
        driver.wait()
    deadline = time.monotonic() + 20
    while any(worker.is_dir() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(worker.is_dir() for worker in workers)
