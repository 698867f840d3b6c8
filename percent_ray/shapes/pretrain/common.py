"""What all the trainings share: images as tensors, a schedule, an average and a progress bar."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

HELD_OUT_SEED: Final = 99
"""Seed of the scenes that no training sees; the trainings use the seeds below it."""


def to_unit(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [N,3,H,W] in 0..255 to float32 in -1..1."""
    return torch.as_tensor(images).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """float32 [N,3,H,W] in -1..1 to uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Mean over images of the peak signal-to-noise ratio, in dB."""
    error = ((images.astype(np.float64) - others.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255.0**2 / np.maximum(error, 1e-3))))


def warmup_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Learning-rate factor: linear to 1 in ``warmup`` steps, then a cosine to 0 at ``steps``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return factor


class Ema(Generic[M]):
    """Exponential moving averages of several modules' parameters."""

    def __init__(self, modules: list[M], decay: float) -> None:
        self.decay = decay
        self.modules = modules
        self.average: list[M] = [deepcopy(m).requires_grad_(False) for m in modules]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """One step; the decay grows with the number of steps, so that early averages forget."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for module, average in zip(self.modules, self.average, strict=True):
            for mean, now in zip(average.parameters(), module.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)


def progress(label: str, steps: int, first: int = 0) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Yields (step, say) under a bar with time left; ``say`` shows a line beside the bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, refresh_per_second=2) as bar:
        task = bar.add_task(label, total=steps, completed=first, note="")

        def say(note: str) -> None:
            bar.update(task, note=note)
            if not bar.console.is_terminal:
                bar.console.print(f"{label} {bar.tasks[0].completed}/{steps} {note}")

        for step in range(first, steps):
            yield step, say
            bar.advance(task)
