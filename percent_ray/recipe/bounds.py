"""Bounds of a recipe's numbers: what lies beyond them trains nothing, or is a slip of the keyboard.

They are wide: a number inside them may still be a bad choice. What has to fit together is in
`recipe.check`.
"""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=10_000_000)]
"""Of steps, images, tokens, prompts."""
CountOrOff = Annotated[int, Field(ge=0, le=10_000_000)]
Steps = Annotated[int, Field(ge=1, le=1000)]
"""Of denoising."""
StepsOrOff = Annotated[int, Field(ge=0, le=1000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
"""Images in one call."""
Workers = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Pixels = Annotated[int, Field(ge=8, le=16_384)]
Guidance = Annotated[float, Field(ge=1, le=100)]
Seconds = Annotated[float, Field(gt=0, le=10_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""Of what decays: 1 would never move."""
Rate = Annotated[float, Field(ge=1e-12, le=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
"""Of a folder."""
Text = Annotated[str, Field(min_length=1, max_length=1000)]


def _off_or(value: float) -> float:
    if 0 < value < LEAST:
        raise PydanticCustomError("too_small", "", {"least": LEAST})
    return value


LEAST = 1e-9
"""Of what 0 turns off: less than it would turn it off in silence."""
Weight = Annotated[float, Field(ge=0, le=1_000_000), AfterValidator(_off_or)]
"""0 is off."""
Amount = Annotated[float, Field(ge=0, le=1_000_000), AfterValidator(_off_or)]
"""Of CPUs, GPUs, gigabytes."""
