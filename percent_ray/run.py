"""One run from a recipe to its summary: folder, tracker, roles, loop, checkpoints, readout."""

import asyncio
import json
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from percent_ray import recover
from percent_ray.data.prompts import PromptStream, read_prompts
from percent_ray.learn import checkpoint
from percent_ray.loop import Loop, Progress, Roles
from percent_ray.metrics import PROBE, by_space
from percent_ray.models import text
from percent_ray.monitor import history, plots, probes, readout
from percent_ray.monitor.movement import movement
from percent_ray.monitor.terminal import Terminal, probe_line, summary
from percent_ray.monitor.tracking import Status, Tracker
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.process import notes
from percent_ray.recipe.tree import Recipe
from percent_ray.types import Prompt, Span

ERRORS = "error.txt"
"""The traceback of what ended a run, in its folder."""
FIRST = "first_probe.npz"
"""The first probe's pictures, beside the grids: `images` uint8 [P, K, 3, h, w]."""
TIMELINE_STEPS = 3
"""Steps in the timeline picture: enough to see the learner work beside the next step's sampling."""


def train(recipe: Recipe, *, resume: Path | None = None) -> Path:
    """Train to `run.steps` and print the summary. Returns the run's folder.

    `resume` is the folder of a run to go on with. Raises ValueError, in one line, for whatever a
    user can set right.
    """
    folder = resume or _new_folder(Path(recipe.run.folder), recipe.run.name)
    asyncio.run(_train(recipe, folder.resolve(), resuming=resume is not None))
    return folder


async def _train(recipe: Recipe, folder: Path, *, resuming: bool) -> None:
    progress, source, run_id = Progress(), None, None
    if resuming:
        source = checkpoint.latest(folder)
        if source is None:
            raise ValueError(f"{folder} has no checkpoint to resume; start a new run")
        state = checkpoint.read_state(source, recipe)
        progress = Progress(state.version, state.shape_state)
        run_id = state.mlflow_run_id
    prompts = read_prompts(locate_prompts(recipe.data.prompts))
    _quiet(recipe)
    (folder / RECIPE_FILE).write_text(recipes.dump(recipe))
    tracker = Tracker(
        folder,
        tracking_uri=recipe.monitor.tracking_uri,
        experiment=recipe.monitor.experiment,
        run_name=folder.name,
        run_id=run_id,
    )
    tracker.params(dict(recipes.flatten(recipe.model_dump(mode="json"))))
    tracker.file(folder / RECIPE_FILE, "recipe")
    terminal = Terminal(recipe.run.steps)
    journal = Journal(tracker, terminal)
    status: Status = "FAILED"
    roles = None
    try:
        with terminal:
            roles = await _start(recipe, folder, source, prompts[0], terminal.say)
            said = [*notes(recipe), *_cut(recipe, prompts)]
            terminal.say("\n".join([*roles.loaded, *said]))
            begin = _loops(
                recipe, roles, prompts, journal, _Checkpoint(recipe, folder, roles, tracker)
            )
            progress = await recover.run(
                begin, progress, roles, recipe=recipe, folder=folder, say=terminal.say
            )
        status = "FINISHED" if progress.version == recipe.run.steps else "KILLED"
    except Exception as error:
        # The user gets one line; whoever has to mend it needs the rest.
        (folder / ERRORS).write_text(traceback.format_exc())
        error.add_note(f"see {folder / ERRORS}")
        raise
    finally:
        if roles is not None:
            await roles.close()
        journal.draw()
        tracker.close(status)
    terminal.say(journal.summary(checkpoint.latest(folder), said))


def _loops(
    recipe: Recipe,
    roles: Any,
    prompts: Sequence[Prompt],
    journal: "Journal",
    checkpoint: "_Checkpoint",
) -> Callable[[Progress], Loop]:
    """Makes the loop that goes on from a progress."""

    def begin(progress: Progress) -> Loop:
        journal.begin(progress.version)
        loop = Loop(
            recipe,
            roles,
            stream=PromptStream(prompts, seed=recipe.run.seed),
            probes=_probes(recipe, prompts),
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
    """The roles of `runtime.backend`. Ray is imported only where it is asked for."""
    if recipe.runtime.backend == "local":
        from percent_ray.runtime.local import Local

        return Local(recipe, first=first, resume=source)
    from percent_ray.runtime.cluster import Cluster

    return await Cluster.start(recipe, first=first, run_folder=folder, resume=source, say=say)


class _Checkpoint:
    """Writes everything that `--resume` needs, whole or not at all."""

    def __init__(self, recipe: Recipe, folder: Path, roles: Roles, tracker: Tracker) -> None:
        self._recipe, self._folder, self._roles, self._tracker = recipe, folder, roles, tracker

    async def __call__(self, progress: Progress) -> None:
        run = self._recipe.run
        state = checkpoint.DriverState(
            version=progress.version,
            shape_state=progress.shape_state,
            mlflow_run_id=self._tracker.run_id,
        )
        with checkpoint.writing(self._folder, progress.version, keep=run.keep_checkpoints) as aside:
            await self._roles.save(aside)
            checkpoint.write_state(aside, state, self._recipe)
        last = checkpoint.latest(self._folder)
        assert last is not None
        self._tracker.file(last / "policy", f"checkpoints/{last.name}")


class Journal:
    """`loop.Observer`: metrics file, MLflow, terminal lines, pictures."""

    def __init__(self, tracker: Tracker, terminal: Terminal) -> None:
        self.pictures: list[Path] = []
        self._tracker = tracker
        self._terminal = terminal
        self._spans: list[Sequence[Span]] = []
        self._first = _first_probe(tracker.folder)
        """What the lines of probes are counted from, also where this process has resumed a run."""
        self._last: Mapping[str, float] = {}
        self._recent: deque[Mapping[str, float]] = deque(maxlen=readout.WINDOW)
        """Metrics of the last steps, also of those before a resume."""

    def begin(self, first: int) -> None:
        """Step `first` is next, whatever was recorded before."""
        self._recent.clear()
        self._recent.extend(_recorded(self._tracker.folder, before=first))
        self._terminal.begin(first)

    def step(self, step: int, metrics: Mapping[str, float], spans: Sequence[Span]) -> None:
        self._spans = [*self._spans, spans][-TIMELINE_STEPS:]
        with (self._tracker.folder / "spans.jsonl").open("a") as file:
            file.writelines(json.dumps(asdict(span)) + "\n" for span in spans)
        self._tracker.metrics(step, metrics)
        self._terminal.step(step, metrics)
        self._recent.append(metrics)
        if (step + 1) % readout.WINDOW == 0:
            for line in readout.words(self._recent):
                self._terminal.say(line)

    def probe(
        self, version: int, metrics: Mapping[str, float], pictures: Sequence[tuple[str, Any]]
    ) -> None:
        """Metrics of probes are logged at the version that drew them, under `probe/`."""
        images = np.stack([images for _, images in pictures])
        metrics = self._last = {
            **metrics,
            **self._moved(version, [text for text, _ in pictures], images),
        }
        self._first = self._first or metrics
        self._terminal.say(probe_line(version, metrics, self._first))
        self._tracker.metrics(version, {f"{PROBE}{name}": v for name, v in metrics.items()})
        path = self._tracker.folder / "pictures" / f"grid_{version:05d}.png"
        plots.grid(pictures, path)
        probes.write(self._tracker.folder, version, pictures)
        self._tracker.file(path, "pictures")
        self.pictures.append(path)

    def _moved(
        self, version: int, prompts: Sequence[str], images: UInt8[np.ndarray, "P K 3 h w"]
    ) -> dict[str, float]:
        """Where the probe's pictures are, counted from those of the model before training, which
        the run's folder keeps. A move that all pictures share is the first sign of a collapse.

        A resumed run may have other probes: then this one is the first."""
        path = self._tracker.folder / "pictures" / FIRST
        if version and not path.is_file():
            return {}
        first = _arrays(path) if version else {}
        if not first or [*first["prompts"]] != [*prompts] or first["images"].shape != images.shape:
            if version:
                self._terminal.say("probes have other prompts or sizes now; the next is the first")
                self._first = {}
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, images=images, prompts=[*prompts], version=version)
            first = {"images": images}
        moved = movement(first["images"], images)
        return {f"movement/{name}": value for name, value in asdict(moved).items()}

    def draw(self) -> None:
        """The timeline of the last steps, and the run's curves."""
        folder = self._tracker.folder
        if self._spans:
            plots.timeline([s for spans in self._spans for s in spans], folder / "timeline.png")
            plots.curves(self._tracker.history.path, folder / "curves.png")
            for name in ("timeline.png", "curves.png"):
                self._tracker.file(folder / name, "pictures")

    def summary(self, last: Path | None, notes: Sequence[str]) -> str:
        """The end of the run: what the probes say has changed, the `notes` on its recipe, and where
        everything is."""
        curves = self._tracker.folder / "curves.png"
        return summary(
            run_id=self._tracker.run_id,
            tracking_uri=self._tracker.uri,
            metrics_file=self._tracker.history.path,
            checkpoint=last,
            picture=self.pictures[-1] if self.pictures else None,
            curves=curves if curves.is_file() else None,
            first=self._first,
            last=self._last,
            said=[*readout.words(self._recent), *notes],
        )


def _recorded(folder: Path, *, before: int) -> list[dict[str, float]]:
    """The metrics of every step before one, in order; those behind it a resumed run repeats."""
    if not before:
        return []
    return [m for step, m in history.read(folder / history.FILE).items() if step < before]


def _first_probe(folder: Path) -> Mapping[str, float]:
    """The metrics of the probe whose pictures a run's folder keeps; empty where it has none."""
    path = folder / "pictures" / FIRST
    if not path.is_file():
        return {}
    version = int(_arrays(path)["version"])
    return by_space(history.read(folder / history.FILE).get(version, {}), PROBE)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def _new_folder(parent: Path, name: str) -> Path:
    """An empty folder PARENT/NAME, or NAME-2, NAME-3 ... where earlier runs have the name."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
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
        f"{name} of the model cuts {count} of {len(prompts)} prompts at {most} tokens"
        for name, (count, most) in found.items()
        if count
    ]


def _probes(recipe: Recipe, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    path = recipe.data.probe_prompts
    source = read_prompts(locate_prompts(path)) if path else prompts
    return source[: recipe.monitor.probe_groups]


def _stop_on_signals(loop: Loop) -> None:
    """SIGTERM (`ray job stop`) and the first Ctrl-C end the run after the step at hand, with a
    checkpoint; a second Ctrl-C ends it at once."""
    running = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        loop.stopping = True
        running.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop, number)
