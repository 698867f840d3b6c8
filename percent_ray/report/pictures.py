"""Strips of the probes' pictures over a training: the same prompt and noise, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from percent_ray.monitor import probes
from percent_ray.pages.strips import Strip, strip
from percent_ray.report.runs import Run

PROMPTS, STEPS = 4, 6
"""On the page, at most; steps are the first, the last, and some between."""


@dataclass(frozen=True)
class Film:
    """One run's pictures of one prompt."""

    run: str
    strips: Sequence[Strip]


def films(runs: Sequence[Run]) -> tuple[list[tuple[str, list[Film]]], list[str]]:
    """By prompt the films of the runs that have drawn it; a line for whatever cannot be shown."""
    found: dict[str, list[Film]] = {}
    said: list[str] = []
    for run in runs:
        shown: dict[str, list[Strip]] = {}
        for step in chosen([*run.pictures]):
            try:
                pictures = probes.read(run.pictures[step])
            except ValueError as error:
                said.append(f"{run.label}: {error}.")
                continue
            for prompt, images in zip(pictures.prompts, pictures.images, strict=True):
                shown.setdefault(prompt, []).append(strip(f"step {step}", images))
        for prompt, strips in shown.items():
            found.setdefault(prompt, []).append(Film(run.label, strips))
        if not run.pictures:
            said.append(f"{run.label} has no pictures of probes: {_why(run)}.")
    # Prompts that more runs have drawn come first: they compare.
    prompts = sorted(found, key=lambda prompt: -len(found[prompt]))[:PROMPTS]
    return [(prompt, found[prompt]) for prompt in prompts], said


def chosen(steps: Sequence[int]) -> list[int]:
    """At most `STEPS` of them, evenly, with the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(STEPS, len(steps)))
    return [steps[round(place)] for place in places]


def _why(run: Run) -> str:
    if any((run.folder / probes.FOLDER).glob("grid_*.png")):
        return (
            "it was trained by a version that kept them as grids only; "
            f"see {run.folder / probes.FOLDER}"
        )
    if not run.key("monitor.probe_every", 0):
        return "set monitor.probe_every (every 20 steps, say)"
    return "its first probe is not written yet"
