"""The pictures of a run: timeline, picture grid, curves. Files only; no window, no global state."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from percent_ray.metrics import (
    COSINE,
    DESCENT,
    GRADIENT,
    NOISE,
    PERCEPTUAL_ENTROPY,
    POLICY_ENTROPY,
    PROBE,
    REWARD,
    SCHEDULE_ENTROPY,
    SHARED,
    VENDI,
    by_space,
)
from percent_ray.monitor import history
from percent_ray.monitor.spans import overlap
from percent_ray.pages.style import figure, look, plain, save
from percent_ray.types import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "sample": "#4477aa",
    "perceive": "#ee8866",
    "shape": "#bbbbbb",
    "update": "#228833",
    "publish": "#aa3377",
}
"""Of stages; distinct also for colour-blind readers."""
OTHER = "#666666"

Choose = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Lines of a panel, value by name, out of the metrics of one step."""


def timeline(spans: Sequence[Span], path: Path) -> None:
    """A Gantt chart of spans, one lane a worker, with the share of time in which stages overlap."""
    if not spans:
        raise ValueError("timeline: no spans to draw")
    begin = min(span.start for span in spans)
    stages = sorted({span.stage for span in spans}, key=_order)
    first = {
        worker: min((_order(s.stage), s.start) for s in spans if s.worker == worker)
        for worker in {span.worker for span in spans}
    }
    lanes = sorted(first, key=lambda worker: (*first[worker], worker))
    sheet = figure(10, 1.3 + 0.38 * len(lanes))
    axes = sheet.add_subplot()
    for stage in stages:
        chosen = [span for span in spans if span.stage == stage]
        axes.barh(
            [lanes.index(span.worker) for span in chosen],
            [span.seconds for span in chosen],
            left=[span.start - begin for span in chosen],
            height=0.7,
            color=COLOURS.get(stage, OTHER),
            edgecolor="white",
            linewidth=0.8,
            label=stage,
        )
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_xlim(0, max(span.stop for span in spans) - begin)
    axes.set_title(f"{overlap(spans):.0%} of the time at least two stages work at once", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)
    plain(axes, grid="x")
    save(sheet, path)


def grid(groups: Sequence[tuple[str, UInt8[np.ndarray, "K 3 h w"]]], path: Path) -> None:
    """Pictures, a row for each prompt, under its text."""
    if not groups:
        raise ValueError("grid: no pictures to draw")
    columns = max(len(images) for _, images in groups)
    sheet = figure(max(4.0, 0.9 * columns), 1.2 * len(groups))
    for row, (text, images) in enumerate(groups, start=1):
        axes = sheet.add_subplot(len(groups), 1, row)
        axes.imshow(tile(images, columns), interpolation="nearest")
        axes.set_axis_off()
        axes.set_anchor("W")
        axes.set_title(_shorten(text, 14 * columns), loc="left", fontsize=9, pad=3)
    save(sheet, path)


def curves(jsonl: Path, path: Path) -> None:
    """What a run has done to reward and diversity, from its metrics file: pale as trained, where
    every step has other prompts, and strong on the probes, whose prompts and noise are fixed."""
    from matplotlib.ticker import MaxNLocator

    steps = history.read(jsonl)
    sheet = figure(17, 5.2)
    for number, (title, choose) in enumerate(PANELS.items(), start=1):
        axes = sheet.add_subplot(2, 4, number)
        trained = _lines(steps, choose)
        probed = _lines({step: by_space(metrics, PROBE) for step, metrics in steps.items()}, choose)
        for place, name in enumerate(trained | probed):
            colour = look(place).colour
            points, fixed = trained.get(name), probed.get(name)
            if points:
                label, marker, alpha = ("", "", 0.35) if fixed else (name, ".", 1.0)
                (line,) = axes.plot(*zip(*points, strict=True), color=colour, lw=1.5)
                line.set(label=label, marker=marker, alpha=alpha)
            if fixed:
                label = f"{name} probes".strip()
                axes.plot(*zip(*fixed, strict=True), label=label, color=colour, marker="o", lw=2)
        axes.set_title(title, loc="left", fontsize=10)
        axes.ticklabel_format(useOffset=False)
        if title == POLICY_PANEL:
            schedule = _lines(steps, _named("schedule", SCHEDULE_ENTROPY))
            for label, points in schedule.items():
                axes.plot(*zip(*points, strict=True), "--", color="#444444", lw=1, label=label)
            _widen(axes, least=0.1)  # a constant's measurement: its noise is not to fill the panel
        if not (trained or probed):
            axes.text(0.5, 0.5, "not measured", ha="center", color="#888888")
            axes.set_axis_off()
            continue
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if number > 4:
            axes.set_xlabel("step")
        if any(axes.get_legend_handles_labels()[1]):
            axes.legend(frameon=False, fontsize=8)
        plain(axes, grid="y")
    save(sheet, path)


def _only(*names: str) -> Choose:
    """The metrics of these names; one alone needs no name of its own."""
    return lambda metrics: {
        "" if len(names) == 1 else name: metrics[name] for name in names if name in metrics
    }


def _named(label: str, name: str) -> Choose:
    """One metric under a label."""
    return lambda metrics: {label: metrics[name]} if name in metrics else {}


def _signal_share(metrics: Mapping[str, float]) -> Mapping[str, float]:
    whole = metrics.get(GRADIENT, 0.0) + metrics.get(NOISE, 0.0)
    return {"": metrics[GRADIENT] / whole} if whole > 0 else {}


def _widen(axes: "Axes", *, least: float) -> None:
    """Let the y axis span at least so much."""
    low, high = axes.get_ylim()
    missing = max(0.0, least - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)


def _lines(
    steps: Mapping[int, Mapping[str, float]], choose: Choose
) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each name that `choose` finds."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for step, metrics in sorted(steps.items()):
        for name, value in choose(metrics).items():
            lines.setdefault(name, []).append((step, value))
    return lines


POLICY_PANEL = "policy entropy (nats a dimension)"
SIGNAL_PANELS: Mapping[str, Choose] = {
    "change of the pictures that all share": _only(SHARED),
    "clipped ratios": _only("ratio/clip_low", "ratio/clip_high"),
    "signal, share of a step's gradient": _signal_share,
    "cosine of updates": lambda metrics: {
        **_named("with the last one", COSINE)(metrics),
        **_named("with downhill on fresh images", DESCENT)(metrics),
    },
}
"""Whether steps were signal or noise: title and lines."""
PANELS: Mapping[str, Choose] = {
    "reward": _only(REWARD),
    "Vendi in the group": lambda metrics: by_space(metrics, VENDI),
    POLICY_PANEL: _named("measured", POLICY_ENTROPY),
    "perceptual entropy (nats)": lambda metrics: by_space(metrics, PERCEPTUAL_ENTROPY),
    **SIGNAL_PANELS,
}
"""Of `curves`: title and lines."""


def tile(images: UInt8[np.ndarray, "K 3 h w"], columns: int) -> UInt8[np.ndarray, "h W 3"]:
    """Images side by side on white, as wide as `columns` of them."""
    _, _, height, width = images.shape
    gap = max(1, width // 16)
    row = np.full((height, columns * (width + gap) - gap, 3), 255, np.uint8)
    for column, image in enumerate(images):
        left = column * (width + gap)
        row[:, left : left + width] = image.transpose(1, 2, 0)
    return row


def _order(stage: str) -> int:
    return list(COLOURS).index(stage) if stage in COLOURS else len(COLOURS)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
