"""What an update asks of the optimizer, and the one-process engine in plain torch.

`learn/zero.py` is the other engine. The same losses give both the same gradients.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from percent_ray.models.base import Policy
from percent_ray.recipe import tree

STAMP = "engine.json"


class Engine(Protocol):
    """Gradients, optimizer and trained weights of one rank. Every rank calls every method, in the
    same order, and `backward` equally often."""

    rank: int
    world: int
    """Ranks in all."""
    device: torch.device
    """Of the policy's module."""
    scale: float
    """What a hook on a trained weight sees is this times the gradient of the loss."""

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        """Add the gradient of `loss`. `step` applies the plain sum over calls and ranks, so a loss
        carries its own weight. `last` marks the final call before `step`."""
        ...

    def step(self, *, lr: float) -> float:
        """One optimizer step at that learning rate, on the gradients added since the last one,
        clipped to `learner.max_grad_norm`. Returns their norm before the clip, over all ranks;
        raises FloatingPointError where that is not finite."""
        ...

    def all_reduce(
        self, values: Float64[Tensor, " n"], op: Literal["sum", "max"]
    ) -> Float64[Tensor, " n"]:
        """The sum or maximum over ranks, on every rank."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every rank's `Policy.trainable` are whole. Never write to them."""
        ...

    def holding(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, the policy's trained weights are `weights`, whole on every rank; for passes
        without gradients."""
        ...

    def gather(self) -> dict[str, Tensor] | None:
        """Copies on the CPU of the trained weights by name, whole; None on all ranks but 0."""
        ...

    def save(self, folder: Path) -> None:
        """Write optimizer state and trained weights into an existing folder that all ranks see."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from `save`. Raises ValueError, before anything is loaded, where the folder is
        of another engine, ZeRO stage or number of ranks."""
        ...


class TorchEngine:
    """`Engine` of one process: torch.optim.AdamW.

    Raises ValueError unless the trained weights are float32: AdamW's steps are lost in bfloat16.
    """

    def __init__(self, learner: tree.Learner, policy: Policy) -> None:
        self.rank, self.world, self.scale = 0, 1, 1.0
        self._max_grad_norm = learner.max_grad_norm
        self._weights = policy.trainable()
        for name, weight in self._weights.items():
            if weight.dtype != torch.float32:
                raise ValueError(
                    f"the one-process learner trains float32 weights, {name} is {weight.dtype}; "
                    "set model.dtype float32, model.lora_rank above 0 or runtime.backend ray"
                )
        self.device = next(iter(self._weights.values())).device
        self._optimizer = adamw(learner, self._weights)

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        loss.backward()

    def step(self, *, lr: float) -> float:
        gradients = [w.grad for w in self._weights.values() if w.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        check_norm(norm.item())
        if self._max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self._weights.values(), self._max_grad_norm, norm)
        set_rate(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm.item()

    def all_reduce(
        self, values: Float64[Tensor, " n"], op: Literal["sum", "max"]
    ) -> Float64[Tensor, " n"]:
        return values

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def holding(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return exchanged(self._weights, weights)

    def gather(self) -> dict[str, Tensor] | None:
        return copies(self._weights)

    def save(self, folder: Path) -> None:
        state = {"weights": copies(self._weights), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / "engine.pt")
        write_stamp(folder, stage=None, world=1)

    def load(self, folder: Path) -> None:
        check_stamp(folder, stage=None, world=1)
        state = torch.load(folder / "engine.pt", map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights by name that `TorchEngine.save` wrote, mapped from the file."""
    path = folder / "engine.pt"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["weights"]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group of weights; one that a checkpoint holds is of its time."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def rate(learner: tree.Learner, version: int) -> float:
    """lr 2^(-version / half-life): of the update after `version`, whatever `run.steps` is."""
    if not learner.lr_half_life:
        return learner.lr
    return learner.lr * 0.5 ** (version / learner.lr_half_life)


def adamw(learner: tree.Learner, weights: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """The optimizer of every engine."""
    return torch.optim.AdamW(
        weights.values(),
        lr=learner.lr,
        betas=learner.betas,
        eps=learner.eps,
        weight_decay=learner.weight_decay,
    )


@contextmanager
def exchanged(
    parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Inside, the parameters' memory is that of `weights`; nothing is copied."""
    present = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = present[name]


def snapshot(engine: Engine, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies on their own device of the trained weights, whole, on every rank. Every rank
    enters."""
    with engine.whole():
        return {name: weight.detach().clone() for name, weight in weights.items()}


def copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, contiguous."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()
    }


def check_norm(norm: float) -> None:
    """Raises FloatingPointError for a gradient norm that is not finite."""
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm}")


def write_stamp(folder: Path, *, stage: int | None, world: int) -> None:
    """Note who wrote a folder: a ZeRO stage, or None for `TorchEngine`, on `world` ranks."""
    (folder / STAMP).write_text(json.dumps({"zero_stage": stage, "workers": world}))


def read_stamp(folder: Path) -> dict[str, Any]:
    """`zero_stage` and `workers` of `write_stamp`. Raises ValueError where it noted nothing."""
    path = folder / STAMP
    if not path.is_file():
        raise ValueError(f"{folder} holds no learner state: {STAMP} is missing")
    try:
        stamp = json.loads(path.read_text())
        return {key: stamp[key] for key in ("zero_stage", "workers")}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{path} is damaged; remove {folder.name}") from None


def check_stamp(folder: Path, *, stage: int | None, world: int) -> None:
    """Raises ValueError that says what to set where `write_stamp` noted something else."""
    stamp = read_stamp(folder)
    if (stamp["zero_stage"], stamp["workers"]) == (stage, world):
        return
    backend = "local" if stamp["zero_stage"] is None else "ray"
    settings = [f"runtime.backend {backend}", f"runtime.learner.workers {stamp['workers']}"]
    if stamp["zero_stage"] is not None:
        settings.append(f"learner.zero_stage {stamp['zero_stage']}")
    this = "plain torch" if stage is None else f"ZeRO stage {stage}"
    raise ValueError(
        f"{folder} cannot be resumed by {this} on {world} learner(s); set {', '.join(settings)}"
    )
