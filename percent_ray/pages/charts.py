"""Charts of lines: as data, as a picture a panel, and as the table of numbers below it."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from percent_ray.pages.style import Look, figure, look, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.0, 3.0
"""Inches of a panel: 384 pixels, so that its text is read at a phone's width too."""
ROWS = 60
"""Most rows of a table; of more points some are left out, evenly."""
KEY_POINTS = 7
"""Letters of a key below the panels of a file."""
MARKED = 12
"""Most points of a line that get a marker."""


@dataclass(frozen=True)
class Line:
    """Of a panel. Points that are not finite are gaps."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    """Of a shade about the line; None where there is none."""
    high: np.ndarray | None = None
    look: Look | None = None
    """By its place in the panel where it has none of its own."""
    in_key: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    """Says what y is, in which unit."""
    lines: Sequence[Line]
    xlabel: str = "step"
    least_height: float = 0.0
    """Of the y axis, so that noise about a constant looks like it."""

    @property
    def looks(self) -> list[Look]:
        """Of the lines, in their order."""
        return [line.look or look(number) for number, line in enumerate(self.lines)]

    @property
    def key(self) -> tuple[tuple[str, Look], ...]:
        """Labels and looks of the lines that need telling apart."""
        pairs = zip(self.lines, self.looks, strict=True)
        return tuple((line.label, style) for line, style in pairs if line.in_key)


@dataclass(frozen=True)
class Chart:
    """One figure of a page: panels side by side, one above the other on a phone."""

    title: str
    words: str
    """What to look for."""
    panels: Sequence[Panel]

    @property
    def key(self) -> tuple[tuple[str, Look], ...]:
        """The panels' own where all have the same; else empty, and each panel shows its own."""
        keys = {panel.key for panel in self.panels}
        return keys.pop() if len(keys) == 1 else ()


@dataclass(frozen=True)
class Numbers:
    """What a panel draws, as a table."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    whole: int
    """Rows before some were left out."""


def svg(panel: Panel) -> bytes:
    """A picture of a panel without its title and its key, which a page writes as text."""
    sheet = figure(WIDTH, HEIGHT)
    _draw(sheet.add_subplot(), panel)
    return _svg(sheet)


@cache
def swatch(look: Look) -> bytes:
    """A piece of a line, for a key. SVG."""
    sheet = figure(0.42, 0.16)
    sheet.set_layout_engine("none")
    axes = sheet.add_axes((0, 0, 1, 1))
    axes.plot([0, 1, 2], [0, 0, 0], **look.of_line, markevery=[1])
    axes.set(xlim=(0, 2), ylim=(-1, 1))
    axes.set_axis_off()
    return _svg(sheet)


def png(chart: Chart, path: Path, *, columns: int = 0) -> None:
    """All panels of a chart in one file, in a row unless `columns` says otherwise, their key inside
    the first one or, where it is long, below all."""
    columns = columns or len(chart.panels)
    rows = math.ceil(len(chart.panels) / columns)
    long, width = len(chart.key) > 6, 4.4 * columns
    abreast = max(1, int(width / _key_width(chart))) if long else 1
    below = 0.18 * math.ceil(len(chart.key) / abreast) if long else 0.0
    sheet = figure(width, 3.8 * rows + below)
    for number, panel in enumerate(chart.panels, start=1):
        axes = sheet.add_subplot(rows, columns, number)
        _draw(axes, panel)
        axes.set_title(panel.title, loc="left", fontsize=10)
        if not long and len(panel.key) > 1 and (number == 1 or not chart.key):
            axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")
    if long:
        handles, labels = sheet.axes[0].get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": abreast}
        sheet.legend(handles, labels, frameon=False, fontsize=KEY_POINTS, **place)
    save(sheet, path)


def _key_width(chart: Chart) -> float:
    """Inches that the longest entry of a key below the panels takes, its piece of line included."""
    longest = max(len(label) for label, _ in chart.key)
    return (0.55 * longest + 4.5) * KEY_POINTS / 72


def numbers(panel: Panel) -> Numbers:
    """A row for each x with a column for each line, or, where lines have few x in common or one has
    an x twice, a row for each point."""
    every = sorted({float(x) for line in panel.lines for x in line.x})
    most = max((len(line.x) for line in panel.lines), default=0)
    once = all(len(set(line.x.tolist())) == len(line.x) for line in panel.lines)
    if once and len(every) <= 1.5 * most:
        found = [dict(zip(line.x.tolist(), line.y.tolist(), strict=True)) for line in panel.lines]
        head = [panel.xlabel, *(line.label for line in panel.lines)]
        rows = [[x, *(values.get(x) for values in found)] for x in every]
    else:
        head = ["line", panel.xlabel, panel.title]
        rows = [
            [line.label, float(x), float(y)]
            for line in panel.lines
            for x, y in zip(line.x, line.y, strict=True)
        ]
    return Numbers(head, [rows[i] for i in _chosen(rows)], len(rows))


def _chosen(rows: Sequence[Sequence[str | float | None]]) -> list[int]:
    """At most `ROWS` of a table's rows: both ends, then those in which the columns with the fewest
    numbers have one, so that the probes of a long run are not lost among its steps."""
    kept = {0, len(rows) - 1} if rows else set()
    columns = [
        [i for i, row in enumerate(rows) if row[c] is not None]
        for c in range(len(rows[0]) if rows else 0)
    ]
    for filled in sorted(columns, key=len):
        left = [i for i in filled if i not in kept]
        room = min(ROWS - len(kept), len(left))
        kept |= {left[round(i)] for i in np.linspace(0, len(left) - 1, room)}
    return sorted(kept)


def _svg(sheet: "Figure") -> bytes:
    """The same bytes from the same numbers."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "percent_ray"}):
        sheet.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _draw(axes: "Axes", panel: Panel) -> None:
    for line, style in zip(panel.lines, panel.looks, strict=True):
        label = line.label if line.in_key else "_"
        every = max(1, math.ceil(len(line.x) / MARKED)) if style.dashes else 1
        axes.plot(line.x, line.y, label=label, markevery=every, **style.of_line)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=style.colour, alpha=0.15, lw=0)
    low, high = axes.get_ylim()
    if high - low < panel.least_height:
        axes.set_ylim((low + high - panel.least_height) / 2, (low + high + panel.least_height) / 2)
    axes.set_xlabel(panel.xlabel)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="x", integer=panel.xlabel == "step", nbins=6)
    plain(axes, grid="y")
