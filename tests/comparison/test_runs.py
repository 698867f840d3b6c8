"""Real runs of tiny models, in the processes of the pool."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from percent_ray import recipe as recipes
from percent_ray import run
from percent_ray.comparison import plan as plans
from percent_ray.comparison import results, runs
from tests.end_to_end import world as worlds


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
        "recipe": {"run": {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9}},
        "rows": {
            "flow_grpo": {"label": "Flow-GRPO", "kind": "reference"},
            "broken": {"label": "broken", "recipe": {"model": {"resolution": 17}}},
        },
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(comparison, sort_keys=False))
    return path


@pytest.mark.slow
def test_runs_are_trained_and_judged_once_and_go_on_where_they_stopped(path):
    plan = plans.load(path)
    assert runs.unfinished(plan) == [("flow_grpo", 1), ("broken", 1)]
    ended = {(row, seed): error for row, seed, error in runs.run_all(plan)}
    assert ended[("base", 0)] is None
    assert ended[("flow_grpo", 1)] is None
    assert "model.resolution 17 does not fit" in (ended[("broken", 1)] or "")
    assert runs.unfinished(plan) == [("broken", 1)]

    found = results.read(plan)
    [run] = found.runs["flow_grpo"]
    assert sorted(run.evaluations) == [0, 1, 2, 3]
    assert run.evaluations[1]["vendi/clip"] != run.evaluations[0]["vendi/clip"]
    assert found.base_pictures().shape == (3, 3, 3, 16, 16)
    rewards = [chosen["quality/pickscore"] for chosen in found.selection]
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0]

    made = (run.folder / "checkpoints").stat().st_mtime_ns
    longer = plans.load(path, ["--run.steps", "4"], rows=["flow_grpo"])
    assert runs.unfinished(longer) == [("flow_grpo", 1)]
    assert [error for *_, error in runs.run_all(longer)] == [None, None]
    assert (run.folder / "checkpoints").stat().st_mtime_ns > made
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    trained = [line["step"] for line in lines if "time/step_s" in line["metrics"]]
    assert trained == [0, 1, 2, 3], "steps 0 to 2 were not trained again"
    assert sorted(results.read(longer).runs["flow_grpo"][0].evaluations) == [0, 1, 2, 3, 4]


def test_a_run_that_was_stopped_is_not_taken_for_finished(path, tmp_path, monkeypatch):
    plan = plans.load(path, rows=["flow_grpo"], folder=str(tmp_path))
    recipe, evaluation = plan.recipe("flow_grpo", 1), plan.comparison.evaluation
    listen = run._stop_on_signals

    def stop_at_once(loop):
        listen(loop)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "_stop_on_signals", stop_at_once)
    with pytest.raises(RuntimeError, match="stopped at step 1 of"):
        runs._train_and_judge(recipe, evaluation)
    monkeypatch.undo()
    assert not runs.is_finished(recipe, evaluation)
    runs._train_and_judge(recipe, evaluation)
    assert runs.is_finished(recipe, evaluation)


def test_a_killed_comparison_leaves_no_worker_behind(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        "import os, time\n"
        "from percent_ray.comparison.runs import pool\n"
        "def work():\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    with pool(1) as workers:\n"
        "        print(workers.submit(work).result(), flush=True)\n"
        "        workers.submit(time.sleep, 600).result()\n"
    )
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = Path("/proc") / driver.stdout.readline().strip()
    assert worker.is_dir()
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 20
    while worker.is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.is_dir()
    driver.stdout.close()
