"""How much a term weighs beside the reward: measured once, or steered (docs/method.md,
"Strength").

What is remembered from step to step is a flat mapping of numbers, by names that begin with the
term's; every function returns it anew.
"""

import math
from collections.abc import Mapping

from jaxtyping import Float32
from torch import Tensor

State = Mapping[str, float]
"""What a method remembers from step to step; part of the checkpoint."""

CALIBRATION_STEPS = 8
"""Steps over which a relative strength is measured before it is frozen. One step is too few: two
seeds have frozen it a factor of two apart."""

INTEGRAL = 0.5
"""Change of log strength for each nat that is missing, at every measurement."""
PROPORTIONAL = 2.0
"""Change of log strength for each nat lost since the last measurement: the damping. Without it the
strength goes on rising while the entropy is on its way back, and over-swings."""
LARGEST_STEP = math.log(2.0)
"""Of log strength at one measurement."""
REACH = math.log(100.0)
"""The strength stays within this of where it began, so that a target out of reach, or one that
holds by itself, cannot drive it beyond recall."""


def calibrated(
    state: State,
    rewards: Float32[Tensor, "G K"],
    term: Float32[Tensor, "G K"],
    rel: float,
    *,
    name: str,
) -> tuple[float, State]:
    """lambda = rel std(r) / std(term): variances within groups, pooled over the first
    CALIBRATION_STEPS steps and kept from then on.

    0 as long as rewards or term have not varied within any group. Raises ValueError where they have
    not over all of those steps.
    """
    keys = [f"{name}/calibration/{what}" for what in ("steps", "reward", "term")]
    steps, reward, spread = (state.get(key, 0.0) for key in keys)
    if steps < CALIBRATION_STEPS:
        steps += 1
        reward += _pooled_variance(rewards)
        spread += _pooled_variance(term)
        state = {**state, **dict(zip(keys, (steps, reward, spread), strict=True))}
    for what, variance in (("rewards", reward), (f"terms ({name})", spread)):
        if not variance > 0 and steps < CALIBRATION_STEPS:
            return 0.0, state
        if not variance > 0:
            raise ValueError(
                f"the {what} of {rewards.shape[0]} groups of {rewards.shape[1]} have std 0 within "
                "groups: set method.relative false and a strength, or look at the scorer"
            )
    return rel * math.sqrt(reward / spread), state


def held(
    state: State, entropy: float | None, start: float, keep: float, *, name: str
) -> tuple[float, State]:
    """The strength that holds an entropy, in nats, at the level whose effective number exp(H) is
    `keep` of the first one measured: a constraint by damped dual ascent.

    `entropy` is this step's measurement, None where there is none. `start` is the first step's
    strength, read then only. A share of the effective number, since nats have no zero to take a
    share of. Raises ValueError where the first step has no measurement, or a strength of 0.
    """
    keys = [f"{name}/held/{what}" for what in ("start", "target", "log_strength", "missing")]
    if keys[0] not in state:
        if not start:
            raise ValueError(
                "method.strength auto begins with the first step's rewards, which do not vary "
                "within any group; set a number, or data.groups_per_step higher"
            )
        if entropy is None:
            raise ValueError("method.strength auto needs probes: set monitor.probe_every above 0")
        log = math.log(start)
        target = entropy + math.log(keep)
        return start, {
            **state,
            **dict(zip(keys, (log, target, log, target - entropy), strict=True)),
        }
    begin, target, log, before = (state[key] for key in keys)
    if entropy is not None:
        missing = target - entropy
        log = ascend(log, missing, before, start=begin)
        state = {**state, keys[2]: log, keys[3]: missing}
    return math.exp(log), state


def ascend(log: float, missing: float, before: float, *, start: float) -> float:
    """The next log strength, from the nats missing now and `before`, at the last measurement;
    `start` is the log strength of the first step."""
    step = INTEGRAL * missing + PROPORTIONAL * (missing - before)
    moved = log + max(-LARGEST_STEP, min(LARGEST_STEP, step))
    return max(start - REACH, min(start + REACH, moved))


def _pooled_variance(values: Float32[Tensor, "G K"]) -> float:
    """Mean over groups of the population variance within a group."""
    return values.double().var(dim=1, correction=0).mean().item()
