"""Which steps are noisy, trained and scored (docs/method.md, "GRPO" and "Perceptual entropy").

Steps are numbered 0 (from pure noise) to T - 1 (to the image).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from percent_ray.flow.noise import generator


def check_sigmas(sigmas: Float[Tensor, " T_plus_1"]) -> None:
    """Raises ValueError unless the sigmas fall strictly from at most 1 to exactly 0."""
    if len(sigmas) < 2:
        raise ValueError(f"a schedule needs at least 2 sigmas, got {len(sigmas)}; set steps >= 1")
    if not (sigmas.diff() < 0).all() or sigmas[0] > 1 or sigmas[-1] != 0:
        raise ValueError(f"sigmas must fall strictly from at most 1 to 0, got {sigmas}")


def trained_steps(num_steps: int, *, fraction: float) -> range:
    """The first int(fraction * T) steps: 9 of 10 and 5 of 6 at fraction 0.99."""
    count = int(fraction * num_steps)
    if not 1 <= count <= num_steps:
        raise ValueError(
            f"a trained fraction of {fraction} of {num_steps} steps is {count} steps; "
            f"set the fraction between {1 / num_steps:.3g} and 1"
        )
    return range(count)


def sde_window(
    num_steps: int, *, size: int, low: int, high: int, seed: int, iteration: int
) -> range:
    """`size` neighbouring steps inside [low, high), shared by every sample of one iteration.

    A function of (seed, iteration) alone: windows that differ within a group would make its rewards
    incomparable.
    """
    if not (0 <= low < high <= num_steps and 1 <= size <= high - low):
        raise ValueError(
            f"an SDE window of {size} steps does not fit in [{low}, {high}) of {num_steps} steps; "
            "set 0 <= low < high <= steps and 1 <= size <= high - low"
        )
    source = generator("sde_window", seed, iteration)
    start = low + int(torch.randint(high - low - size + 1, (), generator=source).item())
    return range(start, start + size)


def scored_steps(steps: range, count: int | None, *, seed: int, group_id: int) -> tuple[int, ...]:
    """The steps whose perceptual log-prob is measured, ascending: all, or `count` at random.

    The same subset for the whole group, so that its images are scored by the same yardstick.
    """
    if count is None:
        return tuple(steps)
    if not 1 <= count <= len(steps):
        raise ValueError(
            f"cannot score {count} of {len(steps)} trained steps; "
            f"set it between 1 and {len(steps)}, or score all of them"
        )
    order = torch.randperm(len(steps), generator=generator("scored_steps", seed, group_id))
    return tuple(sorted(steps[int(i)] for i in order[:count]))
