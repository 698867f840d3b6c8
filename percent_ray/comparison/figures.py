"""The paper's figures for a comparison, and the frontier that it does not show. PNG files."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from percent_ray import metrics
from percent_ray.comparison.results import Curve, Results, Run
from percent_ray.comparison.tables import chosen
from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.aggregate import mean_and_std
from percent_ray.metrics import PROBE
from percent_ray.monitor.plots import tile
from percent_ray.objective.entropy import fit_law
from percent_ray.pages.style import figure, plain, save
from percent_ray.recipe.paths import locate_prompts

STYLES: Mapping[str, Mapping[str, Any]] = {
    "reference": {"ls": "--", "lw": 2.0, "ms": 4},
    "baseline": {"ls": ":", "lw": 1.0, "ms": 2.5},
    "paper": {"ls": "-.", "lw": 1.0, "ms": 2.5},
    "ours": {"ls": "-", "lw": 2.0, "ms": 4},
    "control": {"ls": ":", "lw": 1.0, "ms": 2.5},
}
"""Lines of the frontier by kind of row."""
NATS = 0.1
"""Least height of an axis of policy entropy."""


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Every figure whose rows have been run: its file by its title."""
    drawn: dict[str, Path] = {}
    for title, function in FIGURES.items():
        path = folder / f"{function.__name__}.png"
        if function(results, path):
            drawn[title] = path
    return drawn


@dataclass(frozen=True)
class Band:
    """A line of a panel, as a rule the mean over seeds, and a shade of one std about it."""

    label: str
    x: np.ndarray
    y: np.ndarray
    std: np.ndarray | float = 0.0
    style: Mapping[str, Any] = field(default_factory=dict)
    """Of matplotlib's line."""


def samples(results: Results, path: Path) -> bool:
    """The same prompts and the same noise: base, the reference, and the first method of ours."""
    ours = next((name for name, row in results.rows.items() if row.kind == "ours"), None)
    sets = [("base", results.base_pictures())]
    sets += [
        (results.rows[name].label, results.runs[name][0].pictures())
        for name in (results.reference, ours)
        if name is not None
    ]
    prompts = read_prompts(locate_prompts(results.comparison.evaluation.prompts))[:6]
    sheet = figure(4.6 * len(sets), 1.0 * len(prompts))
    for column, (label, pictures) in enumerate(sets):
        for row, (prompt, images) in enumerate(zip(prompts, pictures, strict=False)):
            axes = sheet.add_subplot(len(prompts), len(sets), row * len(sets) + column + 1)
            axes.imshow(tile(images[:10], 10), interpolation="nearest")
            axes.set_axis_off()
            title = f"{label}: {prompt.text}" if row == 0 else prompt.text
            axes.set_title(title, loc="left", fontsize=7)
    save(sheet, path)
    return True


def frontier(results: Results, path: Path) -> bool:
    """Diversity against reward over training, in every space; each point a judged checkpoint."""
    colours = _colours(results)
    panels: dict[str, list[Band]] = {}
    for space in results.vendi:
        bands = panels[f"Vendi, {space.removeprefix('vendi/')} space"] = []
        for name, runs in results.runs.items():
            row = results.rows[name]
            _, rewards, _ = _mean([run.judged(results.reward) for run in runs])
            _, values, _ = _mean([run.judged(space) for run in runs])
            style = {"color": colours[name], "marker": "o", **STYLES[row.kind]}
            bands.append(Band(row.label, rewards, values, style=style))
        start = np.array([results.base[results.reward]]), np.array([results.base[space]])
        star = {"color": "k", "marker": "*", "ms": 13, "ls": ""}
        bands.append(Band("base", *start, style=star))
        label, line = "choosing among the base's pictures", {"color": "k", "lw": 1.0}
        bands.append(Band(label, *chosen(results, space), style=line))
    xlabel = results.reward.removeprefix("quality/")
    return _panels(path, panels, xlabel=xlabel, columns=2, one_legend=True)


def spending(results: Results, path: Path) -> bool:
    """Reward and diversity of judged checkpoints against images sampled, and against minutes of
    training, the base at 0."""
    colours = _colours(results)
    panels: dict[str, list[Band]] = {}
    columns = (results.reward, *(f"vendi/{space}" for space in results.others))
    for place, (unit, scale) in enumerate((("images sampled", 1), ("minutes", 60))):
        for column in columns:
            bands = panels[f"{column.removeprefix('quality/')} against {unit}"] = []
            for name, runs in results.runs.items():
                row = results.rows[name]
                if any(not len(run.spent()[place]) for run in runs):
                    continue
                _, spent, _ = _mean([(run.judged(column)[0], run.spent()[place]) for run in runs])
                _, values, _ = _mean([run.judged(column) for run in runs])
                style = {"color": colours[name], "marker": "o", **STYLES[row.kind]}
                bands.append(Band(row.label, spent / scale, values, style=style))
    return _panels(path, panels, xlabel="", columns=len(columns), one_legend=True)


def figure_2(results: Results, path: Path) -> bool:
    """Flow-GRPO: policy entropy is constant while the variance falls in every space."""
    runs = _reference(results)
    dashed = {"color": "0.3", "ls": "--", "lw": 0.8}
    reward = results.reward.removeprefix("quality/")
    spaces = {"latent": "VAE", "pixel": "pixel", reward: f"reward ({reward})"}
    panels = {
        "policy entropy (nats a dimension)": [
            _along(runs, "measured", metrics.POLICY_ENTROPY),
            _along(runs, "schedule", metrics.SCHEDULE_ENTROPY, **dashed),
        ],
        "variance in the group, share of the base's": [
            _variance(runs, label, space) for space, label in spaces.items()
        ],
    }
    return _panels(path, panels, least_height=NATS)


def figure_4(results: Results, path: Path) -> bool:
    """Flow-GRPO: the distribution that advantages pull towards; reward std, feature variance."""
    runs = _reference(results)
    panels = {
        "p_A = softmax(A) in the group": [
            _along(runs, "largest", "advantage/p_max"),
            _along(runs, "least", "advantage/p_min"),
        ],
        "reward std in the group": [_along(runs, "reward std", f"{PROBE}reward/std_in_group")],
        "feature variance in the group, share of the base's": [
            _variance(runs, space, space) for space in results.comparison.evaluation.encoders
        ],
    }
    return _panels(path, panels)


def figure_5(results: Results, path: Path) -> bool:
    """The law R = -a exp(H) + b over Flow-GRPO's training, by space (docs/method.md, "The law")."""
    import torch

    runs = _reference(results)
    rewards = np.concatenate([[], *(run.curve(f"{PROBE}{metrics.REWARD}")[1] for run in runs)])
    panels: dict[str, list[Band]] = {}
    for space in results.comparison.evaluation.encoders:
        curves = [run.curve(f"{PROBE}{metrics.PERCEPTUAL_ENTROPY}{space}") for run in runs]
        entropies = np.concatenate([[], *(values for _, values in curves)])
        if not 2 < len(entropies) == len(rewards):
            continue
        a, b, r2 = fit_law(torch.tensor(entropies), torch.tensor(rewards))
        points = {"color": "#4477aa", "marker": "o", "ms": 3, "ls": ""}
        ends = np.exp(np.array([entropies.min(), entropies.max()]))
        panels[f"{space}: a {a:.3g}, b {b:.3g}, R² {r2:.2f}"] = [
            Band("probes", np.exp(entropies), rewards, style=points),
            Band("fit", ends, b - a * ends, style={"color": "#ee8866"}),
        ]
    return _panels(path, panels, xlabel="exp(H_perc)")


def figure_6(results: Results, path: Path) -> bool:
    """Native against shaped, with and without PCVAE, in the reward's space: reward and diversity of
    judged checkpoints. Entropy regularisation with a space is PEC's native form."""
    reward = [results.comparison.evaluation.judges[0]]
    names = [] if results.reference is None else [results.reference]
    for name, row in results.rows.items():
        method = row.recipe.get("method", {})
        shaped = method.get("name") in ("pec", "pcvae") and not method.get("relative")
        native = method.get("name") == "entropy_reg" and "spaces" in method
        if (shaped or native) and list(method.get("spaces", reward)) == reward:
            names.append(name)
    if len(names) < 2:
        return False
    colours = _colours(results)
    panels: dict[str, list[Band]] = {}
    for column in (results.reward, *(f"vendi/{space}" for space in results.others)):
        for name in names:
            style = {"color": colours[name], "marker": "o", "ms": 3}
            mean = _mean([run.judged(column) for run in results.runs[name]])
            panels.setdefault(column, []).append(Band(results.rows[name].label, *mean, style))
    return _panels(path, panels)


def figure_7(results: Results, path: Path) -> bool:
    """Reward, its std in the group and diversity along the runs, all methods."""
    panels = {
        "reward, probes": _along_all(results, f"{PROBE}{metrics.REWARD}"),
        "reward std in the group, probes": _along_all(results, f"{PROBE}reward/std_in_group"),
    }
    for space in results.others:
        metric = f"{PROBE}{metrics.VENDI}{space}"
        panels[f"Vendi in the group ({space}), probes"] = _along_all(results, metric)
    return _panels(path, panels, one_legend=True)


def figure_s4(results: Results, path: Path) -> bool:
    """Policy entropy and perceptual entropy along the runs of all methods."""
    panels = {"policy entropy, measured": _along_all(results, metrics.POLICY_ENTROPY)}
    for space in results.comparison.evaluation.encoders:
        metric = f"{PROBE}{metrics.PERCEPTUAL_ENTROPY}{space}"
        panels[f"H_perc ({space}), probes"] = _along_all(results, metric)
    return _panels(path, panels, one_legend=True, least_height=NATS)


FIGURES: Mapping[str, Callable[[Results, Path], bool]] = {
    "Pictures: the same prompts and the same noise": samples,
    "Frontier: diversity against reward over training": frontier,
    "Reward and diversity against images and time": spending,
    "Figure 2: policy entropy is constant while variance falls": figure_2,
    "Figure 4: what advantages pull towards; reward std and feature variance": figure_4,
    "Figure 5: the law R = -a exp(H) + b, by space": figure_5,
    "Figure 6: native and shaped; with and without PCVAE": figure_6,
    "Figure 7: reward, reward std and diversity along the runs": figure_7,
    "Figure S4: policy entropy and perceptual entropy along the runs": figure_s4,
}


def _panels(
    path: Path,
    panels: Mapping[str, Sequence[Band]],
    *,
    xlabel: str = "step",
    columns: int = 0,
    one_legend: bool = False,
    least_height: float = 0.0,
) -> bool:
    """Panels by title, all in a row unless `columns` says otherwise; the first one's axis is
    `least_height` high, so that noise about a constant looks like it. What was not measured is left
    out; False where that is all."""
    measured = {title: [b for b in bands if len(b.x)] for title, bands in panels.items()}
    measured = {title: bands for title, bands in measured.items() if bands}
    if not measured:
        return False
    columns = columns or len(measured)
    rows = math.ceil(len(measured) / columns)
    sheet = figure(4.4 * columns + 2 * one_legend, 3.8 * rows)
    for number, (title, bands) in enumerate(measured.items(), start=1):
        axes = sheet.add_subplot(rows, columns, number)
        for band in bands:
            (line,) = axes.plot(band.x, band.y, label=band.label, **band.style)
            shade = {"color": line.get_color(), "alpha": 0.15, "lw": 0}
            axes.fill_between(band.x, band.y - band.std, band.y + band.std, **shade)
        low, high = axes.get_ylim()
        if number == 1 and high - low < least_height:
            axes.set_ylim((low + high - least_height) / 2, (low + high + least_height) / 2)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(xlabel)
        axes.ticklabel_format(useOffset=False)
        axes.locator_params(axis="x", integer=xlabel == "step", nbins=6)
        if not one_legend:
            axes.legend(frameon=False, fontsize=8)
        plain(axes, grid="y")
    if one_legend:
        handles, labels = sheet.axes[0].get_legend_handles_labels()
        sheet.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
    save(sheet, path)
    return True


def _along(runs: Sequence[Run], label: str, metric: str, **style: Any) -> Band:
    """A metric over the steps of some runs."""
    return Band(label, *_mean([run.curve(metric) for run in runs]), style)


def _along_all(results: Results, metric: str) -> list[Band]:
    colours = _colours(results)
    return [
        _along(runs, results.rows[name].label, metric, color=colours[name])
        for name, runs in results.runs.items()
    ]


def _variance(runs: Sequence[Run], label: str, space: str) -> Band:
    """The variance in the group on probes, as a share of the first probe's."""
    curves = [run.curve(f"{PROBE}diversity/variance_{space}") for run in runs]
    return Band(label, *_mean([(steps, values / values[:1]) for steps, values in curves]))


def _reference(results: Results) -> Sequence[Run]:
    """The runs of the first reference row."""
    return () if results.reference is None else results.runs[results.reference]


def _mean(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, means, stds) over seeds, at the steps that all have."""
    seeds = [dict(zip(steps.tolist(), values.tolist(), strict=True)) for steps, values in curves]
    shared = [step for step in (seeds[0] if seeds else ()) if all(step in seed for seed in seeds)]
    pairs = [mean_and_std([seed[step] for seed in seeds]) for step in shared]
    means, stds = np.array(pairs).reshape(-1, 2).T
    return np.array(shared), means, stds


def _colours(results: Results) -> dict[str, Any]:
    """Distinct ones, and shades of grey for the references."""
    from matplotlib import colormaps

    wheel = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    references = [name for name, row in results.rows.items() if row.kind == "reference"]
    greys = {name: str(min(0.15 + 0.25 * i, 0.8)) for i, name in enumerate(references)}
    return {name: wheel[i % len(wheel)] for i, name in enumerate(results.rows)} | greys
