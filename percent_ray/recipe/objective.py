"""The recipe's `objective`: advantages, ratio, clip range and KL."""

from typing import Annotated, Literal

from pydantic import Field

from percent_ray.objective import guard
from percent_ray.objective.advantage import StdScope
from percent_ray.objective.penalties import KLForm
from percent_ray.objective.step_weights import StepWeights
from percent_ray.recipe import bounds
from percent_ray.recipe.section import Section


class Objective(Section):
    clip_low: Annotated[float, Field(ge=1e-9, lt=1)] = 1e-4
    """Lower clip range of the ratio, which is above 0."""
    clip_high: Annotated[float, Field(ge=1e-9, le=100)] = 1e-4
    """Upper clip range of the ratio."""
    old_log_prob: Literal["drawn", "replayed"] = "drawn"
    """Of the ratio: what the rollout has drawn with, or the learner's own, taken at its own batch
    shapes before a learner step's first update, so that rollout may round otherwise."""
    advantage_std: StdScope = "global"
    """Whose standard deviation divides the advantage."""
    advantage_clip: Annotated[float, Field(ge=0.001, le=1_000_000)] = 5.0
    """Advantages are clamped to +- this."""
    kl: bounds.Weight = 0.0
    """Weight beta of the KL to the reference policy."""
    kl_form: KLForm = "gaussian"
    """The true KL of the transitions, Flow-GRPO's without dt, or the means' distance alone."""
    kl_steps: bounds.CountOrOff = 0
    """The KL holds the first so many trained steps only; 0 holds all."""
    ratio: guard.Ratio = "plain"
    """pi / pi_old, or GRPO-Guard's of one spread at every step, with a clip range of its own."""
    step_weights: StepWeights = "uniform"
    """How much each step counts: alike, TempFlow-GRPO's 2.25 s, or GRPO-Guard's 1 / (-dt)."""
    reference_every: bounds.CountOrOff = 0
    """Learner steps after which the reference policy becomes the present one; 0 is never."""
    reference_kl: bounds.Weight = 0.0
    """KL to the reference policy at which it does so, too; 0 is never."""
