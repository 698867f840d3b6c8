"""What all the trainings share: images as tensors, and one loop that fits modules to a loss."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Final, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

HELD_OUT_SEED: Final = 99
"""Seed of the scenes that no training sees; the trainings use the seeds below it."""
SAY_EVERY: Final = 101
"""Steps from one printed line to the next: odd, so that losses that take turns all show up."""


class Rates(NamedTuple):
    """How fast a training goes; ``decay`` is that of the average of the weights."""

    lr: float
    weight_decay: float
    decay: float
    beta2: float = 0.999
    warmup: int = 100
    save_every: int = 250


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


def fit(
    label: str,
    modules: list[M],
    loss: Callable[[int], tuple[Tensor, str]],
    save: Callable[[list[M]], None],
    steps: int,
    rates: Rates,
) -> None:
    """Trains what requires a gradient in ``modules`` by AdamW, and averages their weights.

    ``loss`` maps the number of the step to a scalar and a note to print beside its running mean.
    ``save`` gets the averages of ``modules`` now and then, and at the end; what it draws at random
    comes between the draws of two losses.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, rates.lr, betas=(0.9, rates.beta2), weight_decay=rates.weight_decay
    )
    factor = warmup_cosine(steps, rates.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    ema = Ema(modules, rates.decay)
    running = 0.0
    for done, step in enumerate(track(range(steps), label), start=1):
        value, note = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        running += (value.item() - running) / min(done, 200)
        if done % SAY_EVERY == 0:
            print(f"{label} {done}/{steps} loss {running:.4f} {note}".rstrip())
        if done % rates.save_every == 0 or done == steps:
            save(ema.average)
