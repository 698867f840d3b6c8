"""The paper's figure of a user study: a stacked bar for each question."""

from collections.abc import Mapping
from pathlib import Path

from percent_ray.monitor.plots import figure, save
from percent_ray.study.records import Key
from percent_ray.study.statistics import CONFIDENCE, Question

COLOURS = {"a": "#e69f00", "none": "#d9d9d9", "b": "#56b4e9"}
"""Okabe and Ito's orange and sky blue; black text is legible on all three."""
NARROW = 6.0
"""Percent: a narrower part of a bar has no room for its number."""


def draw(counted: Mapping[str, Question], key: Key, annotators: int, path: Path) -> None:
    """Row A from the left, row B from the right, no preference between; a whisker under either's
    edge is the interval of its share."""
    sheet = figure(7.2, 1.3 + 0.62 * len(counted))
    axes = sheet.add_subplot()
    labels = {"a": key.row_a.label, "none": "no preference", "b": key.row_b.label}
    for place, of in enumerate(counted.values()):
        left = 0.0
        for side, share in of.shares.items():
            label = labels[side] if place == 0 else None
            axes.barh(place, share.percent, 0.52, left, color=COLOURS[side], label=label)
            if share.percent >= NARROW:
                middle = left + share.percent / 2
                axes.text(middle, place, f"{share.percent:.0f} %", ha="center", va="center")
            left += share.percent
        a, b = of.shares["a"], of.shares["b"]
        for side, edge, low, high in (
            ("a", a.percent, a.low, a.high),
            ("b", 100 - b.percent, 100 - b.high, 100 - b.low),
        ):
            y = place + 0.34
            axes.plot([low, high], [y, y], color=COLOURS[side], lw=2, solid_capstyle="butt")
            axes.plot([low, edge, high], [y] * 3, "k|", ms=5)
    axes.set_yticks(range(len(counted)), list(counted))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        f"% of answers; {len(key.pairs)} pairs, {annotators} annotators, "
        f"{CONFIDENCE:.0%} intervals",
        fontsize=8,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles, names = axes.get_legend_handles_labels()
    sheet.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    save(sheet, path)
