"""DeepSpeed ZeRO 0-3 as an `Engine`. The only module that imports deepspeed, and only when used."""

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from percent_ray.learn.engine import (
    adamw,
    check_norm,
    check_stamp,
    copies,
    exchanged,
    set_rate,
    snapshot,
    write_stamp,
)
from percent_ray.models.base import Policy
from percent_ray.recipe import tree
from percent_ray.recipe.errors import first_line

TAG = "zero"


class ZeroEngine:
    """`Engine` of one rank of a group, at `learner.zero_stage`.

    `policy.module` becomes DeepSpeed's wrapper: `velocity` must call the network through it.
    Joins the initialised torch.distributed group, or makes one from RANK, WORLD_SIZE and the like.
    Float32 trained weights are stepped in float32 whatever the frozen ones are; bfloat16 ones (full
    fine-tuning) by DeepSpeed's bf16 mode: float32 master weights and gradient sums, ZeRO 1-3.
    Raises ValueError for float16 weights, and for bfloat16 ones at stage 0.
    """

    def __init__(self, learner: tree.Learner, policy: Policy) -> None:
        self._weights = policy.trainable()
        self._stage = learner.zero_stage
        trained = sum(weight.numel() for weight in self._weights.values())
        settings = _settings(learner, _dtype(self._weights, learner.zero_stage), trained)
        deepspeed = _import_deepspeed()
        self._gathered = deepspeed.zero.GatheredParameters
        self._optimizer = adamw(learner, self._weights)
        self._engine, *_ = deepspeed.initialize(
            model=policy.module,
            optimizer=self._optimizer,
            config=settings,
            dist_init_required=False,
        )
        self._engine.checkpoint_engine.load = _load
        # DeepSpeed counts the passes of a step in the engine's own forward: called past it, ZeRO-3
        # keeps the last pass's gradients only, and bf16 adds some of them twice.
        policy.module = self._engine
        self.rank = torch.distributed.get_rank()
        self.world = torch.distributed.get_world_size()
        self.scale = float(self.world)
        self.device = torch.device(self._engine.device)

    def backward(self, loss: Float[Tensor, ""], *, last: bool) -> None:
        # The number of passes varies from step to step, which gradient_accumulation_steps cannot
        # say; and DeepSpeed averages over ranks where this protocol sums.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.scale)

    def step(self, *, lr: float) -> float:
        norm = self._plain_norm() if self._stage == 0 else None
        set_rate(self._optimizer, lr)
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
            check_norm(norm)
        return norm

    def all_reduce(
        self, values: Float64[Tensor, " n"], op: Literal["sum", "max"]
    ) -> Float64[Tensor, " n"]:
        reduced = values.to(self.device, copy=True)
        operation = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}
        torch.distributed.all_reduce(reduced, op=operation[op])
        return reduced

    def whole(self) -> AbstractContextManager[None]:
        return self._gathered(list(self._weights.values()), enabled=self._stage == 3)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        if self._stage < 3:
            with exchanged(self._weights, weights):
                yield
            return
        present = snapshot(self, self._weights)
        self._write(weights)
        try:
            yield
        finally:
            self._write(present)

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        """Exactly these into the parts that ZeRO 3 holds, and not into the optimizer's."""
        with self._gathered(list(self._weights.values()), modifier_rank=0):
            for name, parameter in self._weights.items():
                parameter.copy_(weights[name])

    def gather(self) -> dict[str, Tensor] | None:
        with self.whole():
            return copies(self._weights) if self.rank == 0 else None

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
        if self.rank == 0:
            write_stamp(folder, stage=self._stage, world=self.world)

    def load(self, folder: Path) -> None:
        check_stamp(folder, stage=self._stage, world=self.world)
        # Not strict: the frozen weights are not in it.
        self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def _plain_norm(self) -> float:
        """Stage 0 keeps no norm; the last backward has left reduced gradients in place."""
        gradients = [w.grad for w in self._weights.values() if w.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        check_norm(norm)
        return norm


def saved_weights(folder: Path, *, stage: int) -> dict[str, Tensor]:
    """The trained weights by name (and the network's buffers) that `ZeroEngine.save` wrote. Raises
    ValueError for stage 3, which leaves no file with a whole weight."""
    if stage == 3:
        raise ValueError(
            f"{folder} was written by ZeRO stage 3, in parts of weights; only its policy/ is whole"
        )
    path = folder / TAG / "mp_rank_00_model_states.pt"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["module"]


def _load(path: str, map_location: Any = None) -> Any:
    """In the place of DeepSpeed's own load, which runs whatever code a file holds. Raises
    ValueError for a file with more than tensors and what ZeRO notes beside them."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights and is not loaded: {first_line(error)}"
        ) from error


def _import_deepspeed() -> Any:
    """deepspeed, with torch.distributed initialised."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    # Only inference uses this op, and init_distributed would compile it: a minute, or an error on a
    # machine without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False)
    return deepspeed


def _dtype(weights: Any, stage: int) -> torch.dtype:
    """Of the trained weights; ValueError where DeepSpeed would lose their small steps."""
    dtypes = {weight.dtype for weight in weights.values()}
    if dtypes == {torch.float32} or (dtypes == {torch.bfloat16} and stage > 0):
        return dtypes.pop()
    raise ValueError(
        f"cannot train {', '.join(map(str, dtypes))} weights with ZeRO stage {stage}; set "
        "model.dtype bfloat16 and learner.zero_stage 1, 2 or 3, or model.dtype float32"
    )


BUCKET = 500_000_000
"""DeepSpeed's own."""


def _settings(learner: tree.Learner, dtype: torch.dtype, trained: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Left out, it is 1.0.
        "gradient_clipping": learner.max_grad_norm,
        # torch.optim.AdamW as it is, so that no fused op has to be compiled.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": learner.zero_stage,
            # A float32 buffer, which it makes as large as this whatever is trained.
            "reduce_bucket_size": min(BUCKET, trained),
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
