"""The paper's figures for a comparison, and the frontier that it does not show, as charts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from percent_ray.comparison.results import Results, Run
from percent_ray.comparison.tables import chosen
from percent_ray.comparison.verdict import named
from percent_ray.data.prompts import read_prompts
from percent_ray.monitor import plots
from percent_ray.pages import charts
from percent_ray.pages.charts import Chart, Line, Panel
from percent_ray.pages.strips import Strip, strip
from percent_ray.pages.style import Look, look
from percent_ray.recipe.paths import locate_prompts
from percent_ray.report import figures
from percent_ray.report.law import Law
from percent_ray.report.rows import Row, over_seeds

THICK, THIN = (2.2, 5.5), (1.1, 3.5)
"""Of lines and their markers, in points: references and rows of ours, and all others."""
BASE = Look("#000000", "", "*", size=13)
CHOOSING = Look("#000000", (0, (1, 1.3)), "", width=1.2)
SHOWN, WIDE = 6, 8
"""Prompts of the pictures, and pictures of a prompt."""


def draw(results: Results) -> dict[str, Chart]:
    """Every figure whose rows have been run, by the name of its file."""
    drawn = {function.__name__: function(results) for function in FIGURES}
    return {name: chart for name, chart in drawn.items() if chart is not None}


def save(results: Results, drawn: Mapping[str, Chart], folder: Path) -> None:
    """The figures and the pictures as PNG files."""
    for name, chart in drawn.items():
        charts.png(chart, folder / f"{name}.png", columns=min(len(chart.panels), 3))
    plots.grid(
        [(f"{label}: {text}", p[:WIDE]) for text, sets in samples(results) for label, p in sets],
        folder / "samples.png",
    )


def samples(results: Results) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """By prompt the pictures of base, reference, the row that the verdict names, and the first
    method of ours from the same noise, uint8 [K, 3, H, W] each."""
    ours = next((name for name, row in results.rows.items() if row.kind == "ours"), None)
    sets = [("base model", results.base_pictures())]
    for name in dict.fromkeys((results.reference, named(results), ours)):
        if name is not None:
            sets.append((results.rows[name].label, results.runs[name][0].pictures()))
    prompts = read_prompts(locate_prompts(results.comparison.evaluation.prompts))[:SHOWN]
    return [
        (prompt.text, [(label, pictures[number]) for label, pictures in sets])
        for number, prompt in enumerate(prompts)
    ]


def films(results: Results) -> list[tuple[str, list[Strip]]]:
    """`samples` for the page."""
    return [
        (text, [strip(label, pictures[:WIDE]) for label, pictures in sets])
        for text, sets in samples(results)
    ]


def frontier(results: Results) -> Chart:
    """Diversity against reward over training, in every space; each point a judged checkpoint."""
    panels: list[Panel] = []
    for space in results.vendi:
        lines: list[Line] = []
        for name, row in _rows(results).items():
            runs = results.runs[name]
            _, rewards, _ = over_seeds([run.judged(results.reward) for run in runs])
            _, values, _ = over_seeds([run.judged(space) for run in runs])
            lines.append(Line(row.label, rewards, values, look=row.look))
        start = np.array([results.base[results.reward]]), np.array([results.base[space]])
        lines.append(Line("base model", *start, look=BASE))
        choosing = chosen(results, space)
        if len(choosing[0]):
            lines.append(Line("choosing among the base's pictures", *choosing, look=CHOOSING))
        title = f"Vendi, {space.removeprefix('vendi/')} space"
        panels.append(Panel(title, lines, xlabel=_named(results.reward)))
    words = (
        "What to look for: training goes from the star to the right. At the same reward (the same "
        "place from left to right) the higher line has kept more different pictures. A line above "
        "the reference's is what a method is for; one on it could be had by stopping early."
    )
    return Chart("Frontier: diversity against reward over training", words, panels)


def spending(results: Results) -> Chart | None:
    """Reward and diversity of judged checkpoints against images sampled, and against minutes of
    training, the base at 0."""
    panels: list[Panel] = []
    for place, (unit, scale) in enumerate((("images sampled", 1), ("minutes", 60))):
        for column in (results.reward, *(f"vendi/{space}" for space in results.others)):
            lines: list[Line] = []
            for name, row in _rows(results).items():
                runs = results.runs[name]
                if any(not len(run.spent()[place]) for run in runs):
                    continue
                _, spent, _ = over_seeds([(r.judged(column)[0], r.spent()[place]) for r in runs])
                _, values, _ = over_seeds([run.judged(column) for run in runs])
                lines.append(Line(row.label, spent / scale, values, look=row.look))
            if lines:
                panels.append(Panel(f"{_named(column)} against {unit}", lines, xlabel=unit))
    words = (
        "What to look for: how much sampling and time a method takes to the same reward, and what "
        "diversity is left by then."
    )
    title = "Reward and diversity against images and time"
    return Chart(title, words, panels) if panels else None


def figure_2(results: Results) -> Chart | None:
    """The reference: policy entropy is constant while the variance falls in every space."""
    rewards = [results.comparison.evaluation.judges[0]]
    return _of_reference(results, lambda rows: figures.figure_2(rows, rewards))


def figure_4(results: Results) -> Chart | None:
    """The reference: the distribution that advantages pull towards; reward std, variance."""
    rewards = [results.comparison.evaluation.judges[0]]
    return _of_reference(results, lambda rows: figures.figure_4(rows, rewards))


def figure_5(results: Results) -> Chart | None:
    """The law R = -a exp(-H) + b over the reference's training, by space."""
    return _of_reference(results, figures.figure_5)


def figure_6(results: Results) -> Chart | None:
    """Native against shaped, with and without PCVAE, in the reward's space: reward and diversity of
    judged checkpoints."""
    methods = {name: row.recipe.get("method", {}) for name, row in results.rows.items()}
    acting = figures.of_figure_6(methods, [results.comparison.evaluation.judges[0]])
    names = [name for name in (results.reference, *acting) if name is not None]
    if len(names) < 2:
        return None
    rows = _rows(results)
    panels: list[Panel] = []
    for column in (results.reward, *(f"vendi/{space}" for space in results.others)):
        lines: list[Line] = []
        for name in names:
            steps, means, stds = over_seeds([run.judged(column) for run in results.runs[name]])
            shade = (means - stds, means + stds) if stds.any() else (None, None)
            lines.append(Line(rows[name].label, steps, means, *shade, look=rows[name].look))
        panels.append(Panel(_named(column), lines))
    return Chart(figures.FIGURE_6, figures.WORDS_6, panels)


def figure_7(results: Results) -> Chart | None:
    """Reward, its std in the group and diversity along the runs, all methods, on probes."""
    return figures.figure_7([*_rows(results).values()])


def figure_s4(results: Results) -> Chart | None:
    """Policy entropy and perceptual entropy along the runs of all methods."""
    return figures.figure_s4([*_rows(results).values()])


FIGURES: Sequence[Callable[[Results], Chart | None]] = (
    frontier,
    spending,
    figure_2,
    figure_4,
    figure_5,
    figure_6,
    figure_7,
    figure_s4,
)


def laws(results: Results) -> list[tuple[str, str, Law]]:
    """(row, space, fit) of all rows that have measured perceptual entropy."""
    return figures.laws([*_rows(results).values()])


def _rows(results: Results) -> dict[str, Row]:
    """A line for each row of the table, the mean over its seeds. Rows that are drawn thick have the
    first looks, of which seven differ in colour."""
    numbers = {
        n: i for i, n in enumerate(sorted(results.rows, key=lambda n: not _thick(results, n)))
    }
    found: dict[str, Row] = {}
    for name, row in results.rows.items():
        width, size = THICK if _thick(results, name) else THIN
        style = replace(look(numbers[name]), width=width, size=size)
        found[name] = Row(row.label, _steps(results.runs[name]), style, pale=False)
    return found


def _thick(results: Results, name: str) -> bool:
    return results.rows[name].kind in ("reference", "ours")


def _reference(results: Results) -> list[Row]:
    return [] if results.reference is None else [_rows(results)[results.reference]]


def _of_reference(results: Results, draw: Callable[[Sequence[Row]], Chart | None]) -> Chart | None:
    """A figure of one method, and its words with whose it is."""
    rows = _reference(results)
    chart = draw(rows) if rows else None
    if chart is None:
        return None
    return replace(chart, words=f"Of {rows[0].label}, mean over seeds. {chart.words}")


def _steps(runs: Sequence[Run]) -> list[Mapping[int, Mapping[str, float]]]:
    return [run.steps for run in runs]


def _named(column: str) -> str:
    return column.removeprefix("quality/")
