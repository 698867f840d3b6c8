"""The exponential moving average of the trained weights, by Flow-GRPO's rule."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from percent_ray.learn.engine import Engine


def decay(step: int, cap: float) -> float:
    """min(cap, (1 + t) / (10 + t)) after t optimizer steps: short memory first, then the cap's."""
    return min(cap, (1 + step) / (10 + step))


class Ema:
    """Average of the trained weights, moved every `every` optimizer steps. In float32 on the CPU;
    every rank has its part of every tensor, cut in the order of the ranks, under every ZeRO stage.
    """

    def __init__(
        self, engine: Engine, weights: Mapping[str, nn.Parameter], *, cap: float, every: int
    ) -> None:
        self.steps = 0
        """Optimizer steps seen."""
        self._engine = engine
        self._trained = weights
        self._cap = cap
        self._every = every
        with engine.whole():
            self._shapes = {name: weight.shape for name, weight in weights.items()}
            self._parts = {name: self._part(weight) for name, weight in weights.items()}

    def _part(self, whole: Tensor) -> Tensor:
        """A copy of this rank's part."""
        return (
            whole.detach().reshape(-1)[self._place(whole.shape)].to("cpu", torch.float32, copy=True)
        )

    def _place(self, shape: torch.Size) -> slice:
        """Of this rank's part in a tensor's elements."""
        each = math.ceil(shape.numel() / self._engine.world)
        return slice(self._engine.rank * each, (self._engine.rank + 1) * each)

    @torch.no_grad()
    def step(self) -> None:
        """Take notice of one optimizer step. Every rank enters."""
        self.steps += 1
        if self.steps % self._every:
            return
        with self._engine.whole():
            for name, average in self._parts.items():
                average.lerp_(self._part(self._trained[name]), 1 - decay(self.steps, self._cap))

    def gather(self) -> dict[str, Tensor] | None:
        """The average by name, whole, on the CPU; None on all ranks but 0. Every rank enters."""
        found: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            # A sum with every other rank's -0, which is exact: x + -0 is x, also where x is 0.
            whole = torch.full((shape.numel(),), -0.0, dtype=torch.float64)
            whole[self._place(shape)] = self._parts[name].double()
            whole = self._engine.all_reduce(whole, "sum")
            if self._engine.rank == 0:
                found[name] = whole.to("cpu", torch.float32).reshape(shape)
        return found if self._engine.rank == 0 else None

    def load(self, steps: int, path: Path) -> None:
        """Continue from the `steps` and the file of `gather`'s tensors of another one, on any
        number of ranks. Raises ValueError for a tensor that is missing, of another shape or not
        finite."""
        self.steps = steps
        with safe_open(path, "pt") as file:
            if lacking := sorted(self._shapes.keys() - set(file.keys())):
                raise ValueError(f"{path} lacks {len(lacking)} of its tensors: {lacking[0]} ...")
            for name, shape in self._shapes.items():
                whole = file.get_tensor(name)
                if whole.shape != shape or not whole.isfinite().all():
                    raise ValueError(f"{name} in {path} is not finite, or not of {list(shape)}")
                self._parts[name] = self._part(whole)
