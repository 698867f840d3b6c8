"""What runs have done to reward and diversity, in sentences."""

from collections.abc import Iterator, Sequence

from percent_ray.evaluation.aggregate import at_reward
from percent_ray.metrics import REWARD, SHARED, VENDI
from percent_ray.monitor import readout
from percent_ray.report.rows import curve
from percent_ray.report.runs import Run

ALIKE = 0.02
"""Runs whose Vendi differs by less than this share of it are not ranked."""


def summary(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run, and one of where runs compare."""
    return [*(line for run in runs for line in _of(run)), *_compared(runs)]


def _of(run: Run) -> Iterator[str]:
    if len(run.probes) < 2:
        yield f"{run.label}: nothing to compare yet, {len(run.probes)} probes are written."
        return
    first, last = min(run.probes), max(run.probes)
    before, after = run.probes[first], run.probes[last]
    parts = [
        f"from step {first} to step {last} the reward of its probes ({run.reward_name}) went from "
        f"{before[REWARD]:.4g} to {after[REWARD]:.4g}"
    ]
    images = run.key("sampling.group_size", "all")
    for space in run.vendi:
        name = f"{VENDI}{space}"
        if name in before and name in after:
            parts.append(
                f"{after[name]:.1f} of {images} pictures of a prompt count as different in the "
                f"{space} space (Vendi), {before[name]:.1f} did: {after[name] / before[name]:.0%}"
            )
    if after.get(SHARED, 0.0) > 0.5:
        parts.append(
            f"{after[SHARED]:.0%} of what changed is one and the same change in all pictures, so "
            "look whether they drift to one look"
        )
    yield f"{run.label}: {'; '.join(parts)}."


def _compared(runs: Sequence[Run]) -> Iterator[str]:
    """At the highest reward that all have reached, where that is more than any began with."""
    whole = [run for run in runs if len(run.probes) > 1]
    if len(whole) < 2 or len({run.reward_name for run in whole}) > 1:
        return
    rewards = {run.label: curve(run.probes, REWARD)[1] for run in whole}
    level = min(float(values.max()) for values in rewards.values())
    if not level > max(float(values[0]) for values in rewards.values()):  # nor nan
        return
    told: list[str] = []
    for space in (s for s in whole[0].vendi if all(s in run.vendi for run in whole)):
        kept: dict[str, float] = {}
        for run in whole:
            values = curve(run.probes, f"{VENDI}{space}")[1]
            if len(values) == len(rewards[run.label]):
                value = at_reward(rewards[run.label], values, level)
                kept |= {run.label: value} if value is not None else {}
        if len(kept) == len(whole):
            numbers = ", ".join(f"{label} {value:.1f}" for label, value in kept.items())
            most = max(kept, key=lambda label: kept[label])
            apart = max(kept.values()) - min(kept.values()) > ALIKE * max(kept.values())
            verdict = f"{most} most" if apart else "alike"
            told.append(f"{numbers} in the {space} space ({verdict})")
    if told:
        yield (
            f"At the same reward, {level:.4g}, where each run first gets there, so many pictures "
            f"of a prompt count as different: {'; '.join(told)}. One run each: another seed may "
            "turn it round."
        )


def signals(run: Run) -> list[str]:
    """What the last steps say of signal and noise, and what to set."""
    trained = [m for m in run.steps.values() if REWARD in m]
    return readout.words(trained[-readout.WINDOW :])
