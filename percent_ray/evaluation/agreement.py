"""Whether two detectors give the same verdicts by GenEval's rules, task by task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from percent_ray.flow.noise import generator
from percent_ray.types import Prompt

ALL = "all"
"""Of every task together."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two detectors' verdicts on the same pictures."""

    pictures: int
    first: float
    """Share that is right by the first one's detections."""
    second: float
    agreed: float
    """Share of equal verdicts."""
    kappa: float
    """Cohen's: agreement beyond chance, 1 for none but equal ones, 0 for chance; nan where both
    give one and the same verdict throughout, so that there is nothing to agree on."""


def agreement(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> Agreement:
    """Of N verdicts each. Raises ValueError for none."""
    if not len(first):
        raise ValueError("no pictures; give an evaluation that has kept some")
    agreed, p, q = float(np.mean(first == second)), float(first.mean()), float(second.mean())
    chance = p * q + (1 - p) * (1 - q)
    kappa = math.nan if chance == 1 else (agreed - chance) / (1 - chance)
    return Agreement(len(first), p, q, agreed, kappa)


def by_task(
    tasks: Sequence[str], first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]
) -> dict[str, Agreement]:
    """Of each task, in the order of their first pictures, and of `ALL`."""
    named = np.array(tasks)
    found = {
        task: agreement(first[named == task], second[named == task])
        for task in dict.fromkeys(tasks)
    }
    return found | {ALL: agreement(first, second)}


def scenes(count: int, seed: int) -> list[tuple[Prompt, UInt8[Tensor, "1 3 32 32"]]]:
    """Drawn scenes of the embedded world, every task alike often. Every other one is held against
    another scene's prompt of its task, so that verdicts of both kinds are to be expected."""
    from percent_ray.shapes import scenes as world

    found: list[tuple[Prompt, UInt8[Tensor, "1 3 32 32"]]] = []
    for number in range(count):
        task = world.TASKS[number % len(world.TASKS)]
        place = 10_000_000 * seed + 2 * number
        scene, own = world.example(place, task)
        other = world.example(place + 1, task)[1]
        record = own if (number // len(world.TASKS)) % 2 == 0 else other
        image = torch.from_numpy(world.render(scene))[None]
        found.append((Prompt(record["prompt"], record), image))
    return found


def noisy(
    images: UInt8[Tensor, "N 3 H W"], levels: float, *, seed: int
) -> UInt8[Tensor, "N 3 H W"]:
    """Pictures with Gaussian noise of a standard deviation of `levels` of 255: what a worse
    detector sees."""
    source = generator("calibration", seed)
    noise = torch.randn(images.shape, generator=source)
    return (images.float() + levels * noise).round().clamp(0, 255).to(torch.uint8)
