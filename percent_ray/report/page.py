"""The report of some runs: one self-contained HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from percent_ray.metrics import PERCEPTUAL_ENTROPY, POLICY_ENTROPY, PROBE, REWARD, VENDI
from percent_ray.pages.charts import Chart
from percent_ray.pages.page import render
from percent_ray.pages.style import look
from percent_ray.report import figures, pictures, words
from percent_ray.report.lacking import lacking, reward_space
from percent_ray.report.rows import Row
from percent_ray.report.runs import Run, notes

PAGE = "report.html"
BEGINS = b"<!doctype html"
"""Every page, in letters of any size."""


@dataclass(frozen=True)
class Figure:
    """One of the page."""

    title: str
    chart: Chart | None
    lacks: Sequence[str] = ()
    """A line for whatever is not in it: why, and which key of the recipe gives it."""


def write(runs: Sequence[Run], command: str, path: Path | None = None) -> list[str]:
    """Write the page, into the first run's folder where no path is given; lines for a terminal.

    `command` is what makes it anew. Raises ValueError where the path is a folder, has no name of a
    page, or has another file.
    """
    path = path or runs[0].folder / PAGE
    _keep_others(path)
    shown = draw(runs)
    films, said = pictures.films(runs)
    page = render(
        Path(__file__).parent / "page.html.jinja",
        runs=runs,
        notes=notes(runs),
        summary=words.summary(runs),
        films=films,
        said=said,
        figures=shown,
        laws=figures.laws(rows(runs)),
        signals={run.label: words.signals(run) for run in runs},
        command=command,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    whole = [figure for figure in shown if figure.chart]
    lines = [*notes(runs), *words.summary(runs), ""]
    lines += [f"not drawn: {f.title}. {' '.join(f.lacks)}" for f in shown if not f.chart]
    size = path.stat().st_size / 2**20
    return [*lines, f"report: {path}  ({len(whole)} of {len(shown)} figures, {size:.1f} MiB)"]


def _keep_others(path: Path) -> None:
    """Raises ValueError for a path where a page would be in the place of something else."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give --to a file, such as {path / PAGE}")
    if path.suffix.lower() != ".html":
        raise ValueError(f"{path}: a report is a page; give --to a name such as {PAGE}")
    if not path.exists():
        return
    start = b""
    if is_file := path.is_file():
        with path.open("rb") as file:
            start = file.read(len(BEGINS))
    if not is_file or start.lower() not in (BEGINS, b""):  # empty: the disk was full
        raise ValueError(f"{path} is there and is no page of ours; give --to another name")


def rows(runs: Sequence[Run]) -> list[Row]:
    """A line for each run."""
    return [Row(run.label, [run.steps], look(number)) for number, run in enumerate(runs)]


def draw(runs: Sequence[Run]) -> list[Figure]:
    """Every figure, in the page's order; those that runs lack are without a chart."""
    lines = rows(runs)
    rewards = list(dict.fromkeys(name for run in runs for name in run.reward))
    seen = [f"{PROBE}{REWARD}", f"{PROBE}{VENDI}"]
    chosen, why = _figure_6(runs)
    return [
        Figure(figures.FRONTIER, figures.frontier(lines), lacking(runs, seen)),
        Figure(
            figures.FIGURE_2,
            figures.figure_2(lines, rewards),
            [*lacking(runs, [POLICY_ENTROPY, figures.VARIANCE]), *reward_space(runs)],
        ),
        Figure(
            figures.FIGURE_4,
            figures.figure_4(lines, rewards),
            lacking(runs, [figures.P_MAX, figures.STD, figures.VARIANCE]),
        ),
        Figure(
            figures.FIGURE_5,
            figures.figure_5(lines),
            [*lacking(runs, [f"{PROBE}{PERCEPTUAL_ENTROPY}"]), *_few(runs, lines)],
        ),
        Figure(figures.FIGURE_6, figures.figure_6(rows(chosen)) if not why else None, why),
        Figure(figures.FIGURE_7, figures.figure_7(lines), lacking(runs, [figures.STD, VENDI])),
        Figure(
            figures.FIGURE_S4,
            figures.figure_s4(lines),
            lacking(runs, [POLICY_ENTROPY, PERCEPTUAL_ENTROPY]),
        ),
        Figure(figures.LEARNING, figures.learning(lines)),
    ]


def _figure_6(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that figure 6 compares, and why it cannot."""
    methods = {run.label: run.key("method", {}) for run in runs}
    rewards = list(dict.fromkeys(name for run in runs for name in run.reward))
    acting = figures.of_figure_6(methods, rewards)
    plain = [run.label for run in runs if run.method == "flow_grpo"][:1]
    chosen = [run for run in runs if run.label in (*plain, *acting)]
    if acting and len(chosen) > 1:
        return chosen, []
    return chosen, [
        "It compares a shaped and a native form, or PCVAE and none, in the reward's own space, and "
        "these runs have no such pair: train method.name pec (or pcvae) with method.native false "
        "and, in another run, true, and give both."
    ]


def _few(runs: Sequence[Run], lines: Sequence[Row]) -> list[str]:
    """Runs with perceptual entropy on probes that are too few for a fit."""
    fitted = {label for label, _, _ in figures.laws(lines)}
    said: list[str] = []
    for run in runs:
        measured = [m for m in run.probes.values() if any(PERCEPTUAL_ENTROPY in n for n in m)]
        if measured and run.label not in fitted:
            said.append(
                f"{run.label} has {len(measured)} probes with perceptual entropy, the law needs 3 "
                "different ones: set monitor.probe_every lower, or wait."
            )
    return said
