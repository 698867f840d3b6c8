"""One run from a recipe to its summary: folder, tracker, roles, loop, checkpoints, readout."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from percent_ray import files, job, lock, recover
from percent_ray.data.prompts import PromptStream, digest, of_recipe
from percent_ray.learn import checkpoint
from percent_ray.learn.engine import check_stamp
from percent_ray.loop import Loop, Progress, Roles
from percent_ray.models import text
from percent_ray.monitor.journal import Journal
from percent_ray.monitor.terminal import Terminal
from percent_ray.monitor.tracking import Status, Tracker
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.recipe.errors import short
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.process import notes
from percent_ray.recipe.tree import Recipe
from percent_ray.types import Prompt


def train(recipe: Recipe, *, resume: Path | None = None) -> Path:
    """Train to `run.steps` and print the summary. Returns the run's folder.

    `resume` is the folder of a run to go on with. Raises ValueError, in one line, for whatever a
    user can set right.
    """
    prompts, probes = of_recipe(recipe)
    folder = resume or _new_folder(Path(recipe.run.folder), recipe.run.name)
    signals: list[signal.Signals] = []
    with lock.held(folder):
        try:
            training = _train(recipe, folder.resolve(), prompts, probes, resuming=bool(resume))
            asyncio.run(_ended_by_signals(training, signals))
        except BaseException as error:
            if signals and isinstance(error, asyncio.CancelledError):
                error = job.Stopped() if signals[0] == signal.SIGTERM else KeyboardInterrupt()
            job.keep(error, folder.resolve())
            raise error
    return folder


async def _train(
    recipe: Recipe,
    folder: Path,
    prompts: Sequence[Prompt],
    probes: Sequence[Prompt],
    *,
    resuming: bool,
) -> None:
    progress, source, run_id, passed = Progress(), None, None, list[str]()
    prompts_digest = digest(prompts)
    if resuming:
        source, passed = checkpoint.resumable(folder)
        if source is None:
            found = "".join(f"; {line}" for line in passed)
            raise ValueError(f"{folder} has no whole checkpoint to resume; start a new run{found}")
        state = _resumed(recipe, source, prompts=prompts_digest)
        progress = Progress(state.version, state.shape_state, state.oldest)
        run_id = state.mlflow_run_id
        then, now = checkpoint.read_recipe(source), recipe.model_dump(mode="json")
        passed += recipes.moved(dict(then), now).values()
    _quiet(recipe)
    if not resuming:
        files.write(folder / RECIPE_FILE, recipes.dump(recipe))
    tracker = Tracker(
        folder,
        tracking_uri=recipe.monitor.tracking_uri,
        experiment=recipe.monitor.experiment,
        run_name=folder.name,
        run_id=run_id,
    )
    tracker.params(dict(recipes.flatten(recipe.model_dump(mode="json"))))
    terminal = Terminal(recipe.run.steps)
    journal = Journal(tracker, terminal, alarm_share=recipe.monitor.alarm_share)
    status: Status = "FAILED"
    roles = None
    try:
        with terminal:
            roles = await _start(recipe, folder, source, prompts[0], terminal.say)
            # Of a resumed run only now: what is refused changes nothing.
            files.write(folder / RECIPE_FILE, recipes.dump(recipe))
            tracker.file(folder / RECIPE_FILE, "recipe")
            said = [*passed, *notes(recipe), *_cut(recipe, prompts)]
            terminal.say("\n".join([*roles.loaded, *said]))
            saves = _Checkpoint(recipe, folder, roles, tracker, prompts=prompts_digest)
            begin = _loops(recipe, roles, prompts, probes, journal, saves)
            progress = await recover.run(
                begin, progress, roles, recipe=recipe, folder=folder, say=terminal.say
            )
        status = "FINISHED" if progress.version == recipe.run.steps else "KILLED"
    finally:
        if roles is not None:
            await roles.close()
        journal.draw()
        tracker.close(status)
    terminal.say(journal.summary(checkpoint.latest(folder), said))


def _resumed(recipe: Recipe, source: Path, *, prompts: str) -> checkpoint.DriverState:
    """Where a checkpoint stands. Raises ValueError for whatever another recipe, other learners or
    other prompts would not go on with exactly."""
    state = checkpoint.read_state(source, recipe)
    stage = None if recipe.runtime.backend == "local" else recipe.learner.zero_stage
    check_stamp(source, stage=stage, world=recipe.learner_ranks)
    if state.prompts not in ("", prompts):
        raise ValueError(
            f"{locate_prompts(recipe.data.prompts)} is not what the run began with; put that back, "
            "or start a new run"
        )
    if state.version > recipe.run.steps:
        raise ValueError(
            f"run.steps {recipe.run.steps}: {source} is of step {state.version}; set that or more"
        )
    return state


def _loops(
    recipe: Recipe,
    roles: Any,
    prompts: Sequence[Prompt],
    probes: Sequence[Prompt],
    journal: Journal,
    checkpoint: "_Checkpoint",
) -> Callable[[Progress], Loop]:
    """Makes the loop that goes on from a progress."""

    def begin(progress: Progress) -> Loop:
        journal.begin(progress.version)
        loop = Loop(
            recipe,
            roles,
            stream=PromptStream(prompts, seed=recipe.run.seed),
            probes=probes,
            observer=journal,
            checkpoint=checkpoint,
            progress=progress,
        )
        _stop_on_signals(loop)
        return loop

    return begin


async def _start(
    recipe: Recipe,
    folder: Path,
    source: Path | None,
    first: Prompt,
    say: Callable[[str], None],
) -> Any:
    """The roles of `runtime.backend`. Ray is imported only where it is asked for. Workers track
    nothing: they are given no credentials."""
    monitor = recipe.monitor.model_copy(update={"tracking_uri": ""})
    recipe = recipe.model_copy(update={"monitor": monitor})
    if recipe.runtime.backend == "local":
        from percent_ray.runtime.local import Local

        return await Local.start(recipe, first=first, resume=source)
    from percent_ray.runtime.cluster import Cluster

    return await Cluster.start(recipe, first=first, run_folder=folder, resume=source, say=say)


class _Checkpoint:
    """Writes everything that `--resume` needs, whole or not at all."""

    def __init__(
        self, recipe: Recipe, folder: Path, roles: Roles, tracker: Tracker, *, prompts: str
    ) -> None:
        self._recipe, self._folder, self._roles, self._tracker = recipe, folder, roles, tracker
        self._prompts = prompts

    async def __call__(self, progress: Progress) -> None:
        run = self._recipe.run
        oldest = progress.version if progress.oldest is None else progress.oldest
        state = checkpoint.DriverState(
            version=progress.version,
            shape_state=progress.shape_state,
            mlflow_run_id=self._tracker.run_id,
            oldest=oldest,
            prompts=self._prompts,
        )
        written = checkpoint.writing(self._folder, progress.version, keep=run.keep_checkpoints)
        with ExitStack() as stack:
            aside = stack.enter_context(written)
            await self._roles.save(aside, oldest)
            checkpoint.check_learner(aside)
            checkpoint.write_state(aside, state, self._recipe)
            # Checksums and the disk take a minute where a model is large.
            await asyncio.to_thread(stack.pop_all().close)
        last = checkpoint.latest(self._folder)
        assert last is not None
        # Over the one before: a server would keep every checkpoint's for ever.
        self._tracker.file(last / "policy", "policy")


def _new_folder(parent: Path, name: str) -> Path:
    """An empty folder PARENT/NAME, or NAME-2, NAME-3 ... where earlier runs have the name."""
    number = 1
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _quiet(recipe: Recipe) -> None:
    """No bars and remarks of the loaders, unless something may have to be fetched from a hub."""
    if Path(recipe.model.folder).is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _cut(recipe: Recipe, prompts: Sequence[Prompt]) -> list[str]:
    """A line for each tokenizer that does not read every prompt to its end."""
    try:
        found = text.cut(recipe.model, [prompt.text for prompt in prompts])
    except ValueError as error:  # this process may have no tokenizers where the workers have them
        return [f"prompts that are cut off are not counted: {error}"]
    return [
        f"{name} of the model cuts {cut.prompts} of {len(prompts)} prompts at {cut.most} tokens; "
        f"the longest has {cut.longest}: {short(prompts[cut.which].text)}"
        for name, cut in found.items()
        if cut.prompts
    ]


async def _ended_by_signals(training: Coroutine[Any, Any, None], got: list[signal.Signals]) -> None:
    """Before there is a step to finish, SIGTERM and Ctrl-C cancel the run, so that it ends what it
    has started; `got` is told. An exception that a handler raises may be lost in a library."""
    running, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def end(number: signal.Signals) -> None:
        if number in got:
            return  # `timeout` sends SIGTERM twice
        got.append(number)
        if number == signal.SIGINT:  # a second Ctrl-C does not wait
            running.remove_signal_handler(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, end, number)
    await training


def _stop_on_signals(loop: Loop) -> None:
    """SIGTERM (`ray job stop`), however often, and the first Ctrl-C end the run after the step at
    hand, with a checkpoint; a second Ctrl-C ends it at once."""
    running = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        loop.stopping = True
        if number == signal.SIGINT:
            running.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop, number)
