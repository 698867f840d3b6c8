"""The four nouns that cross a process boundary, and the letters that shapes are written in.

Letters: G groups, K images in a group, T denoising steps, S trained steps, N scored
steps, B batch, C H W latent channels, height and width, D feature dimension.

A *group* is the K images of one prompt, all drawn by exactly one policy version. It is the atom:
sampled, perceived, retried, dropped and learned from as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:  # torch takes half a gigabyte and seconds, and who moves metadata needs none
    from percent_ray.objective.grpo import Weights

Ref = Any
"""A handle to an Arrow table: a `ray.ObjectRef` in the Ray runtime, the table itself in one
process. The driver passes it on and never opens it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of the prompt file."""

    text: str
    metadata: Mapping[str, Any] | None = None
    """GenEval's `tag`, `include`, `exclude`, where the file has them."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of work, for the timeline: wall-clock seconds since the epoch."""

    stage: str
    worker: str
    start: float
    stop: float
    group_id: int | None = None

    @property
    def seconds(self) -> float:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One sampled group. Written by a rollout actor."""

    group_id: int
    """The group's number in the run; negative for a probe group, which is never learned from."""
    prompt: Prompt
    version: int
    """The policy version that drew every image of it."""
    steps: range
    """The trained steps, among 0..T-1; none in the forward process, where S and N are 0."""
    std: Float32[np.ndarray, " S"]
    """Standard deviations of their transitions."""
    entropy: Float32[np.ndarray, " S"]
    """Closed-form policy entropy of their transitions, nats a dimension."""
    scored: tuple[int, ...]
    """The steps, among `steps`, whose perceptual log-prob is measured."""
    payload: Ref
    """Arrow table of K rows, `data/arrow.py`: latents, means, log-probs over the trained steps, or
    in the forward process the finished latents alone."""
    condition: Ref
    """Arrow table of one row: what the model's text encoders made of the prompt."""
    span: Span


@dataclass(frozen=True, slots=True)
class Perception:
    """What the frozen models say of one group. Written by a perception actor."""

    group_id: int
    rewards: Mapping[str, Float32[np.ndarray, " K"]]
    """Raw reward by scorer. A scorer that is not required and failed is left out."""
    log_p_perc: Mapping[str, Float32[np.ndarray, "K N"]]
    """Perceptual log-prob (arXiv 2605.12112, eq. 12) by space over the scored steps; empty when not
    measured."""
    log_p_policy: Float32[np.ndarray, "K S"]
    """Log-prob of the drawing policy over the trained steps."""
    features: Mapping[str, Float32[np.ndarray, "K D"]]
    """Features of the finished images by space, unscaled."""
    variance: Mapping[str, float]
    """Trace of the group's covariance divided by its dimension, in `latent` and `pixel` space."""
    thumbnails: UInt8[np.ndarray, "K 3 h w"] | None
    """The finished images, at most 256 pixels a side; only for the groups that were asked for."""
    failures: Mapping[str, str]
    """A line for every failed scorer, by its name."""
    dropped: bool
    """True when a required scorer failed for good: the group must not be learned from."""
    span: Span


@dataclass(frozen=True, slots=True)
class ShapedRow:
    """One group with what its method makes of it. Written by the driver."""

    group_id: int
    version: int
    payload: Ref
    """None, like the condition, on a learner rank that takes no image of the group."""
    condition: Ref
    weights: "Weights"
    """Every weight float32 [K, S], or [K, 1] in the forward process, on the CPU."""


@dataclass(frozen=True, slots=True)
class ShapedBatch:
    """Everything that one learner step consumes. Groups that teach nothing are already left out, so
    every rank sees the same rows."""

    version: int
    """The version that the learner holds before it consumes this batch: the step's number."""
    rows: tuple[ShapedRow, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """What the learner group did with one batch. Written by rank 0, already reduced."""

    version: int
    """The version after the update."""
    metrics: Mapping[str, float]
    span: Span


class LearnerLost(ConnectionError):
    """The learner group has died, or hangs: another one can go on from the last checkpoint."""
