"""What a run records of itself: metrics file, MLflow, terminal lines, pictures."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from percent_ray.metrics import PROBE, by_space
from percent_ray.monitor import history, plots, probes, readout
from percent_ray.monitor.movement import movement
from percent_ray.monitor.terminal import Terminal, probe_line, summary
from percent_ray.monitor.tracking import Tracker
from percent_ray.types import Span

FIRST = "first_probe.npz"
"""The first probe's pictures, beside the grids: `images` uint8 [P, K, 3, h, w]."""
TIMELINE_STEPS = 3
"""Steps in the timeline picture: enough to see the learner work beside the next step's sampling."""


class Journal:
    """`loop.Observer` of one run."""

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
