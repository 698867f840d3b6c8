"""The old policy of the forward process: what groups are drawn with, and where a step starts."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from percent_ray.learn.engine import Engine, copies, snapshot
from percent_ray.models.base import Policy
from percent_ray.objective.forward import old_decay
from percent_ray.recipe import tree

FILE = "old.safetensors"


class Old:
    """A running average of the trained weights by `learner.old`, one step of it a learner step.

    Held in float32 by every rank, whole: also under ZeRO 3, which holds the trained ones in parts.
    """

    def __init__(self, policy: Policy, engine: Engine, settings: tree.Old) -> None:
        self._policy = policy
        self._engine = engine
        self._settings = settings
        self._average = {name: w.float() for name, w in self._trained().items()}
        self._weights = self._cast()
        """The average in the dtype of the trained weights."""

    def __call__(self) -> AbstractContextManager[None]:
        """Inside, the policy's `velocity` is the old one's."""
        return self._engine.holding(self._weights)

    @torch.no_grad()
    def follow(self, step: int) -> float:
        """old <- d old + (1 - d) trained after `step` learner steps; returns d. Every rank
        enters."""
        d = old_decay(step, **self._settings.model_dump())
        for name, weight in self._trained().items():
            self._average[name].lerp_(weight.float(), 1 - d)
        self._weights = self._cast()
        return d

    def gather(self) -> dict[str, Tensor] | None:
        """Copies on the CPU in the trained weights' dtype; None on all ranks but 0."""
        return copies(self._weights) if self._engine.rank == 0 else None

    def save(self, folder: Path) -> None:
        """Write the average into an existing folder."""
        save_file(copies(self._average), folder / FILE)

    def load(self, folder: Path) -> None:
        """Continue from `save`."""
        self._average = load_file(folder / FILE, device=str(self._engine.device))
        self._weights = self._cast()

    def _trained(self) -> dict[str, Tensor]:
        return snapshot(self._engine, self._policy.trainable())

    def _cast(self) -> dict[str, Tensor]:
        trained = self._policy.trainable()
        return {name: a.to(trained[name].dtype) for name, a in self._average.items()}
