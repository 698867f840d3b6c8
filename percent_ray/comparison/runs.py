"""Trains and judges the runs of a comparison, several at a time, one core each. Resumable: what is
finished is not done again, what was interrupted goes on from its last checkpoint."""

import contextlib
import json
import multiprocessing
import os
import shutil
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from percent_ray import recipe as recipes
from percent_ray.arguments import RECIPE_FILE
from percent_ray.comparison.plan import Comparison, Evaluation, Plan
from percent_ray.config import Recipe
from percent_ray.learn import checkpoint

RESULT = "evaluation.json"
"""What a finished run's checkpoints were found to be worth, in its folder."""
PICTURES = "pictures.npz"
"""The last checkpoint's pictures: `images` uint8 [P, K, 3, H, W]."""
SELECTION = "selection.json"
"""What choosing among the base model's own pictures is worth, in its folder."""
BASE = "base"
"""Folder of the model before training, beside the runs'."""


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / recipe.run.name


def run_all(plan: Plan) -> Iterator[tuple[str, int, str | None]]:
    """Do all runs; yields (row, seed, error or None) as each one ends. The base model comes first.

    A run that fails does not end the others. Interrupted, it leaves every run resumable.
    """
    comparison = plan.comparison
    tasks = [(row, seed) for seed in comparison.seeds for row in comparison.rows]
    first = plan.recipe(tasks[0][0], tasks[0][1])
    # One core a run: two processes of two threads each would wait for each other.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with pool(comparison.workers) as workers:
        try:
            base = workers.submit(_judge_base, first, comparison)
            waiting: dict[Future[str | None], tuple[str, int]] = {base: (BASE, 0)}
            for task in tasks:
                run = workers.submit(_run, plan.recipe(*task), comparison.evaluation)
                waiting[run] = task
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield (*waiting.pop(future), future.result())
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one, however it ends."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A killed comparison leaves no runs behind that go on writing to its folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def is_finished(recipe: Recipe, evaluation: Evaluation) -> bool:
    """Whether a run was trained to its end under this recipe and judged under this protocol."""
    path = folder_of(recipe) / RESULT
    if not path.is_file() or not _same(recipe):
        return False
    found = json.loads(path.read_text())
    last = max(map(int, found["versions"]))
    return found["protocol"] == _protocol(evaluation) and last == recipe.run.steps


def _same(recipe: Recipe) -> bool:
    """Whether the run in the recipe's folder was made with this recipe."""
    path = folder_of(recipe) / RECIPE_FILE
    if not path.is_file():
        return False
    before = recipes.load(path).model_dump(mode="json")
    return not recipes.differences(before, recipe.model_dump(mode="json"))


def _protocol(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(mode="json")


def _quietly(folder: Path, work: Any) -> str | None:
    """`work()` with its output in a log beside the folder; the last line of what went wrong."""
    import torch

    torch.set_num_threads(1)
    log = folder.parent / f"{folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error} (see {log})".replace("\n", " ")
    return None


def _run(recipe: Recipe, evaluation: Evaluation) -> str | None:
    """Train one run to its end and judge its checkpoints, as far as that is not done."""
    if is_finished(recipe, evaluation):
        return None
    return _quietly(folder_of(recipe), lambda: _train_and_judge(recipe, evaluation))


def _train_and_judge(recipe: Recipe, evaluation: Evaluation) -> None:
    from percent_ray import run
    from percent_ray.comparison.judge import Judge

    folder = folder_of(recipe)
    last = checkpoint.latest(folder) if _same(recipe) else None
    if last is None:
        shutil.rmtree(folder, ignore_errors=True)
        run.train(recipe)
    elif checkpoint.read_state(last, recipe).version < recipe.run.steps:
        run.train(recipe, resume=folder)
    reached = checkpoint.read_state(checkpoint.every(folder)[-1], recipe).version
    if reached < recipe.run.steps:
        raise RuntimeError(
            f"stopped at step {reached} of {recipe.run.steps}; run the comparison again"
        )
    judge = Judge(recipe, evaluation)
    versions: dict[str, dict[str, float]] = {}
    images: np.ndarray | None = None
    for path in checkpoint.every(folder):
        version = checkpoint.read_state(path, recipe).version
        versions[str(version)], images = judge(path / "policy")
    assert images is not None, "a run ends with a checkpoint"
    _write(folder, evaluation, versions, images)


def _judge_base(recipe: Recipe, comparison: Comparison) -> str | None:
    folder = comparison.home / "runs" / BASE
    evaluation, pool = comparison.evaluation, comparison.pool
    selected = {"protocol": _protocol(evaluation), "pool": pool}
    judged = _made_under({"protocol": _protocol(evaluation)}, folder / RESULT)
    chosen = not pool or _made_under(selected, folder / SELECTION)

    def work() -> None:
        from percent_ray.comparison.judge import Judge

        folder.mkdir(parents=True, exist_ok=True)
        judge = Judge(recipe, evaluation)
        if not judged:
            found, images = judge(None)
            _write(folder, evaluation, {"0": found}, images)
        if not chosen:
            _write_whole(folder / SELECTION, {**selected, "strengths": judge.select(pool)})

    return None if judged and chosen else _quietly(folder, work)


def _made_under(settings: dict[str, Any], path: Path) -> bool:
    """Whether a file of results is there, and of these settings."""
    return path.is_file() and settings.items() <= json.loads(path.read_text()).items()


def _write(
    folder: Path, evaluation: Evaluation, versions: dict[str, dict[str, float]], images: np.ndarray
) -> None:
    """The result last: it says that all the rest is there."""
    np.savez_compressed(folder / PICTURES, images=images)
    _write_whole(folder / RESULT, {"protocol": _protocol(evaluation), "versions": versions})


def _write_whole(path: Path, result: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(path)


def unfinished(plan: Plan) -> Sequence[tuple[str, int]]:
    """The runs that are still to be done."""
    comparison = plan.comparison
    return [
        (row, seed)
        for seed in comparison.seeds
        for row in comparison.rows
        if not is_finished(plan.recipe(row, seed), comparison.evaluation)
    ]
