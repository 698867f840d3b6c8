"""Trains and judges the runs of a comparison as Ray tasks. Resumable: what is finished is not done
again, what was interrupted goes on from its last checkpoint. The comparison's folder is one that
every machine of the cluster sees."""

import contextlib
import itertools
import json
import os
import shutil
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from percent_ray import files
from percent_ray.comparison import results
from percent_ray.comparison.plan import BASE, Comparison, Plan
from percent_ray.comparison.results import folder_of
from percent_ray.comparison.stored import MEASURED, PICTURES, RESULT, Damaged
from percent_ray.evaluation.judge import Judge, Protocol
from percent_ray.learn import checkpoint
from percent_ray.recipe.tree import Recipe
from percent_ray.runtime import connection

STOPPING_S = 60
"""What an interrupted comparison leaves its runs to finish a step and write a checkpoint."""


@dataclass(frozen=True)
class Job:
    """A run, or the judging of the base model, which is seed 0 of the row `BASE`."""

    row: str
    seed: int
    folder: Path
    """Of its results; its output goes to a log of the same name beside it."""
    work: Callable[[], None]
    anew: bool = False
    """Its folder has a run of another recipe, which is kept beside."""


def unfinished(plan: Plan) -> list[Job]:
    """What is still to be done, the base model first. What has a damaged result is judged again;
    raises ValueError for a run whose recipe cannot be read: nothing says what has trained it."""
    comparison = plan.comparison
    jobs: list[Job] = []
    if not _is_base_judged(plan):
        recipe = plan.recipe(next(iter(comparison.rows)), comparison.seeds[0])
        jobs.append(Job(BASE, 0, comparison.runs / BASE, partial(_judge_base, recipe, comparison)))
    for seed in comparison.seeds:
        for row in comparison.rows:
            recipe = plan.recipe(row, seed)
            if not is_finished(recipe, comparison.evaluation):
                work = partial(_train_and_judge, recipe, comparison.evaluation)
                anew = is_of_another_recipe(recipe)
                jobs.append(Job(row, seed, folder_of(recipe), work, anew))
    return jobs


def run_all(
    jobs: Sequence[Job], *, workers: int, gpus: float = 0.0
) -> Iterator[tuple[Job, str | None]]:
    """Each job in a process of its own with one core and `gpus` GPUs, `workers` at a time; yields
    (job, error or None) as each one ends.

    A job that fails does not end the others. Closed before its end, as by Ctrl-C, this stops the
    runs after the step at hand, with a checkpoint; however it ends, they can go on. Raises
    ValueError where no machine has the GPUs of one job.
    """
    # Two processes of two threads each would wait for each other. Ray hides no GPU from tasks that
    # ask for none; all would take the first.
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
    task = ray.remote(**options, runtime_env={"env_vars": variables})(_do)
    waiting = deque(jobs)
    running: dict[ray.ObjectRef, Job] = {}
    with _cluster(workers, gpus):
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.popleft()
                    running[task.remote(job)] = job
                [ended], _ = ray.wait(list(running))
                yield running.pop(ended), _error(ended)
        finally:
            for interrupted in running:
                ray.cancel(interrupted)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=STOPPING_S)


@contextlib.contextmanager
def _cluster(workers: int, gpus: float) -> Iterator[None]:
    """The cluster of RAY_ADDRESS, or one on this machine that ends with this process, however that
    ends. It has a CPU for every worker also where there are fewer cores: how many runs share them
    is for `workers` to say."""
    started = connection.connect(cpus=max(workers, os.cpu_count() or 1))
    try:
        most = max(node["Resources"].get("GPU", 0.0) for node in ray.nodes())
        if gpus > most:
            raise ValueError(
                f"gpus: a run asks for {gpus:g} and no machine has more than {most:g}; set the "
                "comparison's gpus lower (0 is the CPU), or RAY_ADDRESS to a larger cluster"
            )
        yield
    finally:
        if started:
            connection.leave()


def _do(job: Job) -> str | None:
    """Do a job with its output in a log; what went wrong, in one line."""
    log = job.folder.parent / f"{job.folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            job.work()
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error} (see {log})".replace("\n", " ")
    return None


def _error(ended: ray.ObjectRef) -> str | None:
    """What an ended job says went wrong; for one whose process has died Ray says it."""
    try:
        return ray.get(ended)
    except RayError as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")


def is_finished(recipe: Recipe, protocol: Protocol) -> bool:
    """Whether a run was trained to its end under this recipe and judged under this protocol."""
    with contextlib.suppress(Damaged):
        return recipe.run.steps in results.versions_of(recipe, protocol)
    return False


def _is_base_judged(plan: Plan) -> bool:
    with contextlib.suppress(Damaged):
        return results.is_base_judged(plan)
    return False


def is_of_another_recipe(recipe: Recipe) -> bool:
    """Whether the run's folder has checkpoints of a run that another recipe has trained."""
    return checkpoint.latest(folder_of(recipe)) is not None and not results.is_same(recipe)


def _move_aside(folder: Path) -> None:
    """Keep a run as NAME.before-1, -2 ...; its checkpoints may have taken days."""
    aside = (folder.with_name(f"{folder.name}.before-{n}") for n in itertools.count(1))
    kept = next(path for path in aside if not path.exists())
    folder.rename(kept)
    print(f"{folder} is a run of another recipe; kept as {kept}")


def _train_and_judge(recipe: Recipe, protocol: Protocol) -> None:
    """Train one run to its end, as far as that is not done, and judge its checkpoints."""
    from percent_ray import run

    folder = folder_of(recipe)
    if is_of_another_recipe(recipe):
        _move_aside(folder)
    last = checkpoint.latest(folder)
    if last is None:
        shutil.rmtree(folder, ignore_errors=True)
        run.train(recipe)
    elif checkpoint.read_state(last, recipe).version < recipe.run.steps:
        run.train(recipe, resume=folder)
    made = {checkpoint.read_state(path, recipe).version: path for path in checkpoint.every(folder)}
    if max(made) < recipe.run.steps:
        raise RuntimeError(
            f"stopped at step {max(made)} of {recipe.run.steps}; run the comparison again"
        )
    if recipe.run.steps not in made:
        raise RuntimeError(
            f"trained on to step {max(made)}, with no checkpoint of step {recipe.run.steps}; give "
            f"--run.steps {max(made)}, or another --folder"
        )
    made = {version: path for version, path in made.items() if version <= recipe.run.steps}
    judge = Judge(recipe, protocol)
    print("\n".join(judge.loaded))
    versions: dict[int, Mapping[str, float]] = {}
    for version, path in made.items():
        versions[version], images = judge(path / "policy")
    _write(folder, images, protocol, versions=versions)


def _judge_base(recipe: Recipe, comparison: Comparison) -> None:
    """Judge the model before training, and what choosing among its own pictures is worth."""
    protocol, pool = comparison.evaluation, comparison.pool
    judge = Judge(recipe, protocol)
    print("\n".join(judge.loaded))
    numbers, images = judge(None)
    strengths = judge.select(pool) if pool else []
    folder = comparison.runs / BASE
    found = {"versions": {0: numbers}, "units": judge.units, "strengths": strengths}
    of = results.judged_by(recipe, protocol)
    _write(folder, images, protocol, pool=pool, **of, **found)


def _write(folder: Path, images: np.ndarray, protocol: Protocol, **found: Any) -> None:
    """The result last and all at once: it says that all the rest is there."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / PICTURES, images=images)
    contents = {"protocol": results.under(protocol), "measured": MEASURED, **found}
    files.write(folder / RESULT, json.dumps(contents, indent=1))
