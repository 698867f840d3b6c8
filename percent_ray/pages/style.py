"""How lines look in every chart: colours that colour-blind readers tell apart, and a dash and a
marker each, for grey paper. And the frame of matplotlib's figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Of Okabe and Ito, less the yellow, which is too pale on white."""
MARKERS = "os^DvP*X"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (3, 1.5)))
"""matplotlib's: solid, or (offset, (on, off, ...)) in widths of the line."""


@dataclass(frozen=True, slots=True)
class Look:
    """Of one line."""

    colour: str
    dashes: Any = "-"
    """One of `DASHES`; "" draws markers alone."""
    marker: str = "o"
    width: float = 1.8
    """Points."""
    size: float = 4.5
    """Of the marker, points."""
    alpha: float = 1.0

    @property
    def of_line(self) -> dict[str, Any]:
        """matplotlib's arguments."""
        return {
            "color": self.colour,
            "ls": self.dashes,
            "marker": self.marker,
            "lw": self.width,
            "ms": self.size,
            "alpha": self.alpha,
        }


def look(number: int) -> Look:
    """Of the n-th line of a chart: colours, markers and dashes go round with periods of 7, 8 and 5,
    so that the first 280 lines differ and neighbours do in all three."""
    return Look(
        COLOURS[number % len(COLOURS)],
        DASHES[number % len(DASHES)],
        MARKERS[number % len(MARKERS)],
    )


def figure(width: float, height: float) -> "Figure":
    """An empty one, in inches. Nothing in it is TeX: `$` is part of a prompt or a name."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    # Of every text that is made from here on: also tick labels, which are made when it is drawn.
    rcParams["text.parse_math"] = False
    # A Figure outside pyplot draws with Agg and is safe in any thread.
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(sheet: "Figure", path: Path) -> None:
    """Write a figure, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path)


def plain(axes: "Axes", *, grid: str) -> None:
    """No frame but the axes, faint grid lines along `grid`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if grid == "x" else "y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
