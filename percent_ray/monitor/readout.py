"""Whether the last steps were signal or noise, in numbers and in words (docs/method.md, "Signal and
noise")."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from percent_ray.metrics import (
    DESCENT,
    DIFFER,
    FLOOR_OUTSIDE,
    GRADIENT,
    NOISE,
    PIXELS,
    TAUGHT,
    VENDI,
    by_space,
)

WINDOW = 10
"""Steps that are looked at together: one step's own numbers are too noisy."""
SURE = 2.0
"""Standard errors from 0 that something must be to be told."""
LEAST = 5
"""Steps that must have measured something before it is told."""
MOSTLY = 0.5
"""A step with less signal than this is mostly noise."""
FEW = 0.5
"""Less than this share of the groups with different rewards is told."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over steps and its standard error."""

    mean: float
    error: float
    steps: int

    @property
    def below_0(self) -> bool:
        return self.mean < -SURE * self.error

    @property
    def above_0(self) -> bool:
        return self.mean > SURE * self.error


def share(steps: Sequence[Mapping[str, float]]) -> Estimate | None:
    """The share of a step's squared gradient that is signal; None before `LEAST` steps have
    measured it."""
    pairs = [(m[GRADIENT], m[GRADIENT] + m[NOISE]) for m in steps if GRADIENT in m and NOISE in m]
    whole = math.fsum(square for _, square in pairs)
    if len(pairs) < LEAST or whole <= 0:
        return None
    ratio = math.fsum(signal for signal, _ in pairs) / whole
    # The error of a ratio of sums, whose terms move together.
    rest = [(signal - ratio * square) * len(pairs) / whole for signal, square in pairs]
    return replace(_estimate(rest), mean=ratio)


def descent(steps: Sequence[Mapping[str, float]]) -> Estimate | None:
    """The cosine of the last update with downhill, as fresh images see it."""
    values = [m[DESCENT] for m in steps if DESCENT in m]
    return _estimate(values) if len(values) >= LEAST else None


def words(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """What the steps say of signal and noise and what to set, a line each; none where they have
    measured nothing."""
    lines: list[str] = []
    found, groups = share(steps), [m[TAUGHT] for m in steps if TAUGHT in m]
    if found is not None:
        most = min(1.0, max(found.mean, 0.0) + SURE * found.error)
        told = f"{found.mean:.1%} ± {found.error:.1%}"
        if not found.above_0:
            lines.append(
                f"signal: not told from noise, under {most:.1%} of a step's squared gradient "
                f"({told} over {found.steps} steps); set data.groups_per_step higher, "
                "learner.updates to 1 or learner.lr lower, and give it many steps"
            )
        else:
            mean = sum(groups) / len(groups) if groups else math.nan
            scale = mean * (1 - found.mean) / found.mean
            verdict = "mostly noise" if found.mean < MOSTLY else "mostly signal"
            lines.append(
                f"signal: {told} of a step's squared gradient over {found.steps} steps, {verdict}; "
                f"half of it would be with about {scale:.0f} groups a step, there are {mean:.0f}"
            )
    ahead = descent(steps)
    if ahead is not None and ahead.below_0:
        lines.append(
            f"steps overshoot: on fresh images the last update leads uphill (cosine "
            f"{ahead.mean:.4f} ± {ahead.error:.4f}); set learner.lr lower, "
            "learner.lr_half_life to let it fall, or data.groups_per_step higher"
        )
    rounded = [m[FLOOR_OUTSIDE] for m in steps if m.get(FLOOR_OUTSIDE)]
    if rounded:
        lines.append(
            f"rounding: in {len(rounded)} of {len(steps)} steps it moved the ratio of up to "
            f"{max(rounded):.1%} of what is learned from out of the clip range before any update "
            "(ratio/floor); set objective.old_log_prob replayed (reverse process), model.dtype "
            "float32 or a wider clip range"
        )
    differ = [m[DIFFER] for m in steps if DIFFER in m]
    if differ and (mean := math.fsum(differ) / len(differ)) < FEW:
        lines.append(
            f"rewards differ in {mean:.0%} of the groups only, in the others the reward teaches "
            "nothing; set sampling.group_size higher or give prompts that are neither too easy nor "
            "too hard"
        )
    return lines


def alarms(now: Mapping[str, float], first: Mapping[str, float], *, share: float) -> list[str]:
    """A line for each measure of the probes' diversity that is below `share` of the first
    probe's."""
    names = {"pixel variance": PIXELS}
    names |= {f"Vendi({space})": f"{VENDI}{space}" for space in by_space(now, VENDI)}
    lines: list[str] = []
    for label, name in names.items():
        if name in now and name in first and now[name] < share * first[name]:
            lines.append(
                f"alarm: {label} of the probes is {now[name] / first[name]:.0%} of the first "
                f"probe's ({first[name]:.4g} -> {now[name]:.4g}; monitor.alarm_share {share:g}): "
                "images of a prompt become one image; look at pictures/, and set learner.lr lower, "
                "objective.kl higher or a method.name that keeps diversity"
            )
    return lines


def idle(taught: Mapping[int, bool]) -> list[str]:
    """A line on the steps that have not taught anything, where there are any."""
    count = sum(not useful for useful in taught.values())
    return [f"{count} of {len(taught)} steps taught nothing: all advantages were 0"] * bool(count)


def _estimate(values: Sequence[float]) -> Estimate:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)), len(values))
