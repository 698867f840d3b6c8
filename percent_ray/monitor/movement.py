"""Where training has moved a policy's pictures, noise by noise."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class Movement:
    """From the pictures of one policy to those of another, drawn from the same noise."""

    size: float
    """Mean squared difference of a pixel, in units of the whole range (0 to 1)."""
    shared: float
    """Share of it that is one and the same difference for every picture of every prompt; 1 / (P K)
    if pictures moved independently."""
    of_prompt: float
    """Share of it that is the same for all pictures of a prompt; includes `shared`."""


def movement(
    before: UInt8[np.ndarray, "P K 3 H W"], after: UInt8[np.ndarray, "P K 3 H W"]
) -> Movement:
    """How far pictures have moved, and how much of that they have in common.

    A move that all pictures share brings none of them closer together in a linear space; but pixels
    end at 0 and 255, and there it piles them up. Where nothing has moved all is 0. Raises
    ValueError for sets of different shapes.
    """
    if before.shape != after.shape:
        raise ValueError(f"pictures of shapes {before.shape} and {after.shape} do not compare")
    moved = (after.astype(np.float64) - before) / 255
    size = np.square(moved).mean()
    if not size > 0:
        return Movement(0.0, 0.0, 0.0)
    shared = np.square(moved.mean(axis=(0, 1))).mean()
    of_prompt = np.square(moved.mean(axis=1)).mean()
    return Movement(float(size), float(shared / size), float(of_prompt / size))
