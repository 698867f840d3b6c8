"""The policy that the KL is measured to: the model before training, or a later one of the run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from percent_ray.learn.engine import Engine, copies, snapshot
from percent_ray.models.base import Policy
from percent_ray.recipe import tree

FILE = "reference.safetensors"


class Reference:
    """Made anew every `objective.reference_every` learner steps, and whenever the KL to it exceeds
    `objective.reference_kl`; without either it stays the model before training.

    Every rank holds the whole trained weights for it, also under ZeRO 3.
    """

    def __init__(self, policy: Policy, engine: Engine, objective: tree.Objective) -> None:
        self._policy = policy
        self._engine = engine
        self._every = objective.reference_every
        self._kl = objective.reference_kl
        self._weights: Mapping[str, Tensor] | None = None
        """None stands for the model before training."""

    def __call__(self) -> AbstractContextManager[None]:
        """Inside, the policy's `velocity` is the reference's."""
        if self._weights is None:
            return self._policy.reference()
        return self._engine.holding(self._weights)

    def follow(self, version: int, kl: float) -> bool:
        """Take the present weights where it is time to; `kl` is the last update's, the same on all
        ranks. Returns whether it has."""
        due = bool(self._every) and version % self._every == 0
        if not due and not (self._kl and kl > self._kl):
            return False
        self._weights = snapshot(self._engine, self._policy.trainable())
        return True

    def save(self, folder: Path) -> None:
        """Write the weights, where there are any, into an existing folder."""
        if self._weights is not None:
            save_file(copies(self._weights), folder / FILE)

    def load(self, folder: Path, device: torch.device) -> None:
        """Continue from `save`."""
        path = folder / FILE
        self._weights = load_file(path, device=str(device)) if path.is_file() else None
