"""What a figure draws a line of: one run, or one method over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from percent_ray.evaluation.aggregate import mean_and_std
from percent_ray.metrics import PROBE
from percent_ray.pages.charts import Line
from percent_ray.pages.style import Look

Steps = Mapping[int, Mapping[str, float]]
"""A metrics file in order: of every step, and under `probe/` of every probe."""
Curve = tuple[np.ndarray, np.ndarray]
"""Values [n] over versions, steps or rewards [n]: (x, y)."""

POINTS = 300
"""Most points of a line of training steps; of more, means of neighbours are drawn."""
PALE = 0.35


@dataclass(frozen=True)
class Row:
    """A line of every figure."""

    label: str
    seeds: Sequence[Steps]
    look: Look
    pale: bool = True
    """Whether training steps are drawn too, behind the probes."""

    def has(self, prefix: str) -> list[str]:
        """Names of the metrics under a prefix, less the prefix, in the order of the file."""
        found = dict.fromkeys(k for steps in self.seeds for m in steps.values() for k in m)
        return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]

    def line(self, name: str, label: str = "", *, look: Look | None = None) -> Line | None:
        """A metric over the steps that all seeds have, with one std about it; None where none is.

        `label` and `look` are the row's own where not given.
        """
        x, y, std = over_seeds([curve(steps, name) for steps in self.seeds])
        return _line(x, y, std, label or self.label, look or self.look) if len(x) else None

    def lines(self, name: str, label: str = "", look: Look | None = None) -> list[Line]:
        """The same metric on probes, strong, and as trained, pale; what there is of them."""
        probed = self.line(f"{PROBE}{name}", label, look=look)
        trained = self.line(name, label, look=look) if self.pale or probed is None else None
        if trained is None or trained.look is None:
            return [] if probed is None else [probed]
        plain = replace(trained.look, marker="", width=1.2)
        trained = _thinned(replace(trained, label=f"{trained.label}, as trained", look=plain))
        if probed is None:
            return [trained]
        return [replace(trained, look=replace(plain, alpha=PALE), in_key=False), probed]

    def share(self, name: str, label: str = "", *, look: Look | None = None) -> Line | None:
        """A metric on probes, or as trained where there are none, as a share of its first value."""
        for metric in (f"{PROBE}{name}", name):
            curves = [curve(steps, metric) for steps in self.seeds]
            if all(len(x) for x, _ in curves):
                x, y, std = over_seeds([(x, y / y[:1]) for x, y in curves if y[0]])
                line = _line(x, y, std, label or self.label, look or self.look)
                return _thinned(line) if len(x) else None
        return None


def curve(steps: Steps, name: str) -> Curve:
    """A metric of the metrics file over the steps that have it."""
    values = {step: metrics[name] for step, metrics in steps.items() if name in metrics}
    return np.array([*values]), np.array([*values.values()])


def over_seeds(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, means, stds) over seeds, at the steps that all have."""
    seeds = [dict(zip(steps.tolist(), values.tolist(), strict=True)) for steps, values in curves]
    shared = [step for step in (seeds[0] if seeds else ()) if all(step in seed for seed in seeds)]
    pairs = [mean_and_std([seed[step] for seed in seeds]) for step in shared]
    means, stds = np.array([(mean, std or 0.0) for mean, std in pairs]).reshape(-1, 2).T
    return np.array(shared), means, stds


def _line(x: np.ndarray, y: np.ndarray, std: np.ndarray, label: str, look: Look) -> Line:
    low, high = (y - std, y + std) if std.any() else (None, None)
    return Line(label, x, y, low, high, look)


def _thinned(line: Line) -> Line:
    """At most `POINTS` points: each the mean of neighbours."""
    if len(line.x) <= POINTS:
        return line
    parts = np.array_split(np.arange(len(line.x)), POINTS)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.array([values[part].mean() for part in parts])

    low, high = (None if v is None else mean(v) for v in (line.low, line.high))
    return replace(line, x=np.round(mean(line.x)), y=mean(line.y), low=low, high=high)
