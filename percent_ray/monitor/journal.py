"""What a run records of itself: metrics file, MLflow, terminal lines, pictures."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from percent_ray.metrics import PROBE, TAUGHT, by_space
from percent_ray.monitor import history, plots, probes, readout
from percent_ray.monitor.artist import Artist
from percent_ray.monitor.failed import Failed
from percent_ray.monitor.movement import movement
from percent_ray.monitor.terminal import Terminal, probe_line, summary
from percent_ray.monitor.tracking import Tracker
from percent_ray.recipe.errors import first_line
from percent_ray.types import Span

FIRST = "first_probe.npz"
"""The first probe's pictures, beside the grids: `images` uint8 [P, K, 3, h, w]."""
DRAW_S = 120.0
"""Longest wait for pictures at the end of a run."""
MOST_TOLD = 5
"""Numbers of damaged lines in a line."""
TIMELINE_STEPS = 3
"""Steps in the timeline picture: enough to see the learner work beside the next step's sampling."""


class Journal:
    """`loop.Observer` of one run. What it draws it draws in the background, and tells where that
    fails. `alarm_share` is the recipe's `monitor.alarm_share`."""

    def __init__(self, tracker: Tracker, terminal: Terminal, *, alarm_share: float) -> None:
        self.pictures: list[Path] = []
        self._tracker = tracker
        self._terminal = terminal
        self._artist = Artist(tracker.folder, terminal.say)
        self._alarm_share = alarm_share
        self._spans: list[Sequence[Span]] = []
        self._first = _first_probe(tracker.folder)
        """What the lines of probes are counted from, also where this process has resumed a run."""
        self._last: Mapping[str, float] = {}
        self._recent: deque[Mapping[str, float]] = deque(maxlen=readout.WINDOW)
        """Metrics of the last steps, also of those before a resume."""
        self._failed = Failed()
        self._taught: dict[int, bool] = {}
        """Whether a step taught anything, also of those before a resume."""

    def begin(self, first: int) -> None:
        """Step `first` is next, whatever was recorded before."""
        self._recent.clear()
        path = self._tracker.folder / history.FILE
        recorded = history.read(path) if first else {}
        before = {step: metrics for step, metrics in recorded.items() if step < first}
        self._recent.extend(before.values())
        self._taught = {step: m[TAUGHT] > 0 for step, m in before.items() if TAUGHT in m}
        if torn := history.damaged(path) if first else []:
            numbers = ", ".join(map(str, torn[:MOST_TOLD])) + ", ..." * (len(torn) > MOST_TOLD)
            self._terminal.say(f"{path} is damaged: left out are lines {numbers}")
        self._terminal.begin(first)

    def failed(self, step: int, groups: Sequence[Mapping[str, str]]) -> None:
        for line in self._failed.add(step, groups):
            self._terminal.say(line)

    def step(self, step: int, metrics: Mapping[str, float], spans: Sequence[Span]) -> None:
        self._spans = [*self._spans, spans][-TIMELINE_STEPS:]
        self._artist.attempt("spans.jsonl", lambda: self._write(spans))
        self._tracker.metrics(step, metrics)
        self._terminal.step(step, metrics)
        self._recent.append(metrics)
        self._taught[step] = metrics.get(TAUGHT, 1) > 0
        if not self._taught[step] and self._taught.get(step - 1, True):
            self._terminal.say(
                f"step {step + 1} taught nothing: all images of a group have the same reward, in "
                "every group; give other prompts, or set sampling.group_size higher"
            )
        if (step + 1) % readout.WINDOW == 0:
            for line in [*readout.words(self._recent), *self._failed.always()]:
                self._terminal.say(line)

    def _write(self, spans: Sequence[Span]) -> None:
        with (self._tracker.folder / "spans.jsonl").open("a") as file:
            file.writelines(json.dumps(asdict(span)) + "\n" for span in spans)

    def probe(
        self, version: int, metrics: Mapping[str, float], pictures: Sequence[tuple[str, Any]]
    ) -> None:
        """Metrics of probes are logged at the version that drew them, under `probe/`."""
        self._tracker.metrics(version, {f"{PROBE}{name}": v for name, v in metrics.items()})
        self._artist.draw("the pictures' movement", lambda: self._tell(version, metrics, pictures))
        self._artist.draw("the grid", lambda: self._grid(version, pictures))
        folder = self._tracker.folder
        self._artist.draw("a probe's pictures", lambda: probes.write(folder, version, pictures))

    def _tell(
        self, version: int, metrics: Mapping[str, float], pictures: Sequence[tuple[str, Any]]
    ) -> None:
        """The line of a probe, with how far its pictures have moved where that can be told."""
        moved: Mapping[str, float] = {}
        try:
            moved = self._moved(version, pictures)
            self._tracker.metrics(version, {f"{PROBE}{name}": v for name, v in moved.items()})
        finally:
            metrics = self._last = {**metrics, **moved}
            self._first = {**metrics, **self._first}  # a judge may have failed at the first one
            for line in (probe_line(version, metrics, self._first), *self._alarms()):
                self._terminal.say(line)

    def _alarms(self) -> list[str]:
        return readout.alarms(self._last, self._first, share=self._alarm_share)

    def _grid(self, version: int, pictures: Sequence[tuple[str, Any]]) -> None:
        path = self._tracker.folder / "pictures" / f"grid_{version:05d}.png"
        plots.grid(pictures, path)
        self._tracker.file(path, "pictures")
        self.pictures.append(path)

    def _moved(self, version: int, pictures: Sequence[tuple[str, Any]]) -> dict[str, float]:
        """Where the probe's pictures are, counted from those of the model before training, which
        the run's folder keeps. A move that all pictures share is the first sign of a collapse.

        A resumed run may have other probes: then this one is the first."""
        prompts = [text for text, _ in pictures]
        images: UInt8[np.ndarray, "P K 3 h w"] = np.stack([images for _, images in pictures])
        path = self._tracker.folder / "pictures" / FIRST
        if version and not path.is_file():
            return {}
        first: Mapping[str, np.ndarray] = {}
        if version:
            first, damage = _arrays(path)
            if damage:
                self._restart(f"{path} is damaged ({damage})")
            elif [*first["prompts"]] != prompts or first["images"].shape != images.shape:
                self._restart("probes have other prompts or sizes now")
                first = {}
        if not first:
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, images=images, prompts=prompts, version=version)
            first = {"images": images}
        moved = movement(first["images"], images)
        return {f"movement/{name}": value for name, value in asdict(moved).items()}

    def _restart(self, why: str) -> None:
        self._terminal.say(f"{why}; the next is the first")
        self._first = {}

    def draw(self) -> None:
        """The timeline of the last steps, and the run's curves. Waits for all that is drawn."""
        if self._spans:
            spans = [span for step in self._spans for span in step]
            history_path = self._tracker.history.path
            self._picture("timeline", lambda path: plots.timeline(spans, path))
            self._picture("curves", lambda path: plots.curves(history_path, path))
        self._artist.finish(DRAW_S)

    def _picture(self, name: str, plot: Callable[[Path], None]) -> None:
        path = self._tracker.folder / f"{name}.png"

        def draw() -> None:
            plot(path)
            self._tracker.file(path, "pictures")

        self._artist.draw(name, draw)

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
            said=[
                *readout.words(self._recent),
                *readout.idle(self._taught),
                *self._failed.words(),
                *self._alarms(),
                *notes,
            ],
        )


def _first_probe(folder: Path) -> Mapping[str, float]:
    """The metrics of the probe whose pictures a run's folder keeps; empty where it has none, and
    where they are damaged."""
    path = folder / "pictures" / FIRST
    if not path.is_file():
        return {}
    arrays, damage = _arrays(path)
    if damage:
        return {}
    return by_space(history.read(folder / history.FILE).get(int(arrays["version"]), {}), PROBE)


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What the file of the first probe holds; nothing, and why, where it is damaged."""
    try:
        with np.load(path) as file:
            return {"version": file["version"].reshape(()), **file}, ""
    except Exception as error:  # zipfile, zlib and numpy have many kinds
        return {}, first_line(error)
