"""How much each denoising step's surrogate counts (docs/rivals.md)."""

from typing import Literal

from jaxtyping import Float32
from torch import Tensor

StepWeights = Literal["uniform", "tempflow", "guard"]
"""`tempflow`: TempFlow-GRPO's, 2.25 s, more where a step's noise decides more. `guard`:
GRPO-Guard's, 1 / (-dt), so that all steps pull alike at the velocity."""


def step_weight(
    kind: StepWeights,
    std: Float32[Tensor, "*B"],
    *,
    sigma: Float32[Tensor, "*B"],
    sigma_next: Float32[Tensor, "*B"],
) -> Float32[Tensor, "*B"] | None:
    """Of a step sigma -> sigma_next with standard deviation s = `std`; None is 1 for all.

    Raises ValueError for an unknown kind.
    """
    if kind == "uniform":
        return None
    if kind == "tempflow":
        return 2.25 * std
    if kind == "guard":
        return (1 / (sigma - sigma_next)).to(std.device)
    raise ValueError(f"unknown step weights {kind!r}; set them to uniform, tempflow or guard")
