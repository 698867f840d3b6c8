"""Why a figure has not all that it could have, and which key of the recipe gives it."""

from collections.abc import Callable, Mapping, Sequence

from percent_ray import metrics
from percent_ray.metrics import PERCEPTUAL_ENTROPY, PROBE, REWARD, VENDI
from percent_ray.report.figures import P_MAX, STD, VARIANCE
from percent_ray.report.runs import Run


def _by_probes(run: Run) -> str:
    if not run.key("monitor.probe_every", 0):
        return "set monitor.probe_every (every 20 steps, say)"
    return "its first probe is not written yet"


def _by_transitions(run: Run) -> str:
    if run.key("learner.process") == "forward":
        return "the forward process has no transitions; set learner.process reverse to have it"
    return "no step that measures it is written yet"


def _by_perception(run: Run) -> str:
    if run.key("learner.process") == "forward":
        return _by_transitions(run)
    if not run.key("perceptual.spaces"):
        return "set perceptual.spaces, e.g. [dino]"
    if not run.key("perceptual.measure", True) and not run.key("monitor.probe_every", 0):
        return "set monitor.probe_every, or perceptual.measure true"
    return "no step that measures it is written yet"


def _by_spaces(run: Run) -> str:
    if not run.key("monitor.spaces"):
        return "set monitor.spaces, e.g. [dino, clip]"
    return "no step that measures it is written yet"


def _by_steps(_: Run) -> str:
    return "its first step is not written yet"


WANTED: Mapping[str, tuple[str, Callable[[Run], str]]] = {
    metrics.POLICY_ENTROPY: ("policy entropy", _by_transitions),
    PERCEPTUAL_ENTROPY: ("perceptual entropy", _by_perception),
    VENDI: ("Vendi", _by_spaces),
    VARIANCE: ("variance in the group", _by_spaces),
    P_MAX: ("p_A", _by_steps),
    STD: ("reward std in the group", _by_steps),
    f"{PROBE}{PERCEPTUAL_ENTROPY}": (
        "perceptual entropy on probes",
        lambda run: _by_perception(run) if run.probes else _by_probes(run),
    ),
    f"{PROBE}{VENDI}": (
        "Vendi on probes",
        lambda run: _by_spaces(run) if run.probes else _by_probes(run),
    ),
    f"{PROBE}{REWARD}": ("reward on probes", _by_probes),
}
"""Metric, or what its name begins with: what it is called, and how a run comes by it."""


def lacking(runs: Sequence[Run], wanted: Sequence[str]) -> list[str]:
    """What runs have not measured of `wanted`: a line for each thing and each way to come by it."""
    found: dict[tuple[str, str], list[str]] = {}
    for metric in wanted:
        what, how = WANTED[metric]
        both = (metric,) if metric.startswith(PROBE) else (metric, PROBE + metric)
        for run in runs:
            names = {name for measured in run.steps.values() for name in measured}
            if not any(name.startswith(both) for name in names):
                found.setdefault((what, how(run)), []).append(run.label)
    return [f"{', '.join(labels)}: no {what}; {how}." for (what, how), labels in found.items()]


def reward_space(runs: Sequence[Run]) -> list[str]:
    """A line for runs that do not watch their reward's own features; a scorer that only scores has
    none."""
    found: dict[str, list[str]] = {}
    for run in runs:
        watched = {name for m in run.steps.values() for name in m if VARIANCE in name}
        unseen = [r for r in run.reward if not any(n.endswith(VARIANCE + r) for n in watched)]
        if unseen and len(unseen) == len(run.reward):
            found.setdefault(", ".join(unseen), []).append(run.label)
    return [
        f"{', '.join(labels)}: no variance in the reward's own space; add {reward} to "
        "monitor.spaces, if it has an image encoder."
        for reward, labels in found.items()
    ]
