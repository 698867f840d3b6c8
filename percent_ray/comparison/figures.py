"""The paper's figures for a comparison, and the frontier that it does not show. PNG files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from percent_ray.comparison.results import Curve, Results, Run
from percent_ray.comparison.tables import chosen
from percent_ray.config import locate_prompts
from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.aggregate import mean_and_std
from percent_ray.monitor.metrics import PERCEPTUAL_ENTROPY, POLICY_ENTROPY, PROBE, REWARD
from percent_ray.monitor.plots import figure, plain, save, tile
from percent_ray.objective.entropy import fit_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"reference": "--", "baseline": ":", "paper": "-.", "ours": "-", "control": ":"}
"""Lines by kind of row."""


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Every figure whose rows have been run: its title by its file."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Path] = {}
    for title, function in FIGURES.items():
        path = folder / f"{function.__name__}.png"
        if function(results, path):
            drawn[title] = path
    return drawn


def frontier(results: Results, path: Path) -> bool:
    """Diversity against reward over training, in every space; each point a judged checkpoint."""
    spaces = results.vendi
    sheet = figure(13, 9)
    colours = _colours(results)
    for number, space in enumerate(spaces, start=1):
        axes = sheet.add_subplot(2, 2, number)
        for name, runs in results.runs.items():
            row = results.rows[name]
            strong = row.kind in ("reference", "ours")
            rewards = _mean([run.judged(results.reward) for run in runs])[1]
            values = _mean([run.judged(space) for run in runs])[1]
            axes.plot(
                rewards,
                values,
                STYLES[row.kind],
                color=colours[name],
                marker="o",
                markersize=4 if strong else 2.5,
                linewidth=2.0 if strong else 1.0,
                label=row.label,
            )
        axes.plot(
            results.base[results.reward], results.base[space], "k*", markersize=13, label="base"
        )
        if results.selection:
            label = "choosing among the base's pictures"
            axes.plot(*chosen(results, space), "-", color="k", linewidth=1.0, label=label)
        axes.set_title(f"Vendi, {space.removeprefix('vendi/')} space", loc="left", fontsize=10)
        axes.set_xlabel(results.reward.removeprefix("quality/"))
        plain(axes, grid="y")
    handles, labels = sheet.axes[0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
    save(sheet, path)
    return True


def figure_2(results: Results, path: Path) -> bool:
    """Flow-GRPO: policy entropy is constant while the variance falls in every space."""
    runs = _reference(results)
    if not runs:
        return False
    sheet = figure(10, 3.6)
    axes = sheet.add_subplot(1, 2, 1)
    _line(axes, runs, POLICY_ENTROPY, "policy entropy")
    _titled(axes, "policy entropy (nats a dimension)")
    axes = sheet.add_subplot(1, 2, 2)
    reward = results.reward.removeprefix("quality/")
    for space, label in (("latent", "VAE"), ("pixel", "pixel"), (reward, f"reward ({reward})")):
        _line(axes, runs, f"{PROBE}diversity/variance_{space}", label, relative=True)
    _titled(axes, "variance in the group, share of the base's")
    save(sheet, path)
    return True


def figure_4(results: Results, path: Path) -> bool:
    """Flow-GRPO: the distribution that advantages pull towards; reward std, feature variance."""
    runs = _reference(results)
    if not runs:
        return False
    sheet = figure(13, 3.6)
    axes = sheet.add_subplot(1, 3, 1)
    _line(axes, runs, "advantage/p_max", "largest")
    _line(axes, runs, "advantage/p_min", "least")
    _titled(axes, "p_A = softmax(A) in the group")
    axes = sheet.add_subplot(1, 3, 2)
    _line(axes, runs, f"{PROBE}reward/std_in_group", "reward std")
    _titled(axes, "reward std in the group")
    axes = sheet.add_subplot(1, 3, 3)
    for space in results.comparison.evaluation.encoders:
        _line(axes, runs, f"{PROBE}diversity/variance_{space}", space, relative=True)
    _titled(axes, "feature variance in the group, share of the base's")
    save(sheet, path)
    return True


def law_points(runs: Sequence[Run], space: str) -> tuple[np.ndarray, np.ndarray]:
    """(H_perc, reward) of every probe of some runs: fixed prompts, fixed noise."""
    entropies = [run.curve(f"{PROBE}{PERCEPTUAL_ENTROPY}{space}")[1] for run in runs]
    rewards = [run.curve(f"{PROBE}{REWARD}")[1] for run in runs]
    return np.concatenate(entropies), np.concatenate(rewards)


def figure_5(results: Results, path: Path) -> bool:
    """The law R = -a exp(H) + b over Flow-GRPO's training, by space (PAPER eq. 15)."""
    import torch

    runs = _reference(results)
    spaces = [s for s in results.comparison.evaluation.encoders if runs and _measured(runs, s)]
    if not spaces:
        return False
    sheet = figure(4.4 * len(spaces), 3.6)
    for number, space in enumerate(spaces, start=1):
        axes = sheet.add_subplot(1, len(spaces), number)
        entropies, rewards = law_points(runs, space)
        a, b, r2 = fit_law(torch.tensor(entropies), torch.tensor(rewards))
        axes.plot(np.exp(entropies), rewards, "o", color="#4477aa", markersize=3)
        ends = np.exp(np.array([entropies.min(), entropies.max()]))
        axes.plot(ends, b - a * ends, "-", color="#ee8866")
        axes.set_xlabel("exp(H_perc), probes")
        axes.set_title(f"{space}: a {a:.3g}, b {b:.3g}, R² {r2:.2f}", loc="left", fontsize=10)
        plain(axes, grid="y")
    save(sheet, path)
    return True


def figure_6(results: Results, path: Path) -> bool:
    """Native against shaped, with and without PCVAE, in the reward's space: reward and diversity of
    judged checkpoints. Entropy regularisation with a space is PEC's native form."""
    methods = {name: row.recipe.get("method", {}) for name, row in results.rows.items()}
    reward = [results.comparison.evaluation.judges[0]]
    names = [] if results.reference is None else [results.reference]
    for name, method in methods.items():
        shaped = method.get("name") in ("pec", "pcvae") and not method.get("relative")
        native = method.get("name") == "entropy_reg" and "spaces" in method
        if (shaped or native) and list(method.get("spaces", reward)) == reward:
            names.append(name)
    return _judged(results, path, names)


def figure_7(results: Results, path: Path) -> bool:
    """Reward, its std in the group and diversity along the runs, all methods."""
    sheet = figure(14, 4.4)
    colours = _colours(results)
    for number, (name, title) in enumerate(
        (
            (f"{PROBE}{REWARD}", "reward, probes"),
            (f"{PROBE}reward/std_in_group", "reward std in the group, probes"),
            (f"{PROBE}diversity/vendi_dino", "Vendi in the group (dino), probes"),
        ),
        start=1,
    ):
        axes = sheet.add_subplot(1, 3, number)
        for row, runs in results.runs.items():
            _line(axes, runs, name, results.rows[row].label, colour=colours[row])
        _titled(axes, title, legend=False)
    handles, labels = sheet.axes[0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=6)
    save(sheet, path)
    return True


def figure_s4(results: Results, path: Path) -> bool:
    """Policy entropy and perceptual entropy along the runs of the main methods."""
    spaces = [
        space
        for space in results.comparison.evaluation.encoders
        if any(_measured(runs, space) for runs in results.runs.values())
    ]
    if not spaces:
        return False
    sheet = figure(4.2 * (len(spaces) + 1), 3.8)
    colours = _colours(results)
    names = [POLICY_ENTROPY, *(f"{PROBE}{PERCEPTUAL_ENTROPY}{space}" for space in spaces)]
    titles = ["policy entropy", *(f"H_perc ({space}), probes" for space in spaces)]
    for number, (name, title) in enumerate(zip(names, titles, strict=True), start=1):
        axes = sheet.add_subplot(1, len(names), number)
        for row, runs in results.runs.items():
            _line(axes, runs, name, results.rows[row].label, colour=colours[row])
        _titled(axes, title, legend=False)
    handles, labels = sheet.axes[0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=6)
    save(sheet, path)
    return True


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
            axes.set_title(
                f"{label}: {prompt.text}" if row == 0 else prompt.text, loc="left", fontsize=7
            )
    save(sheet, path)
    return True


FIGURES: Mapping[str, Callable[[Results, Path], bool]] = {
    "Frontier: diversity against reward over training": frontier,
    "Figure 2: policy entropy is constant while variance falls": figure_2,
    "Figure 4: what advantages pull towards; reward std and feature variance": figure_4,
    "Figure 5: the law R = -a exp(H) + b, by space": figure_5,
    "Figure 6: native and shaped; with and without PCVAE": figure_6,
    "Figure 7: reward, reward std and diversity along the runs": figure_7,
    "Figure S4: policy entropy and perceptual entropy along the runs": figure_s4,
    "Pictures: the same prompts and the same noise": samples,
}


def _judged(results: Results, path: Path, names: Sequence[str]) -> bool:
    chosen = [name for name in names if name in results.runs]
    if len(chosen) < 2:
        return False
    sheet = figure(13, 3.8)
    colours = _colours(results)
    for number, column in enumerate((results.reward, "vendi/dino", "vendi/clip"), start=1):
        axes = sheet.add_subplot(1, 3, number)
        for name in chosen:
            versions, values, spread = _mean([run.judged(column) for run in results.runs[name]])
            axes.errorbar(
                versions,
                values,
                spread,
                color=colours[name],
                marker="o",
                markersize=3,
                capsize=2,
                label=results.rows[name].label,
            )
        _titled(axes, column)
    save(sheet, path)
    return True


def _reference(results: Results) -> Sequence[Run]:
    """The runs of the first reference row."""
    return () if results.reference is None else results.runs[results.reference]


def _measured(runs: Sequence[Run], space: str) -> bool:
    return all(len(run.curve(f"{PROBE}{PERCEPTUAL_ENTROPY}{space}")[0]) > 2 for run in runs)


def _mean(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(versions, means, stds) over seeds, at the versions that all have."""
    shared = sorted(set.intersection(*(set(versions.tolist()) for versions, _ in curves)))
    columns = [dict(zip(v.tolist(), values.tolist(), strict=True)) for v, values in curves]
    pairs = [mean_and_std([column[version] for column in columns]) for version in shared]
    means, stds = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(shared), np.array(means), np.array(stds)


def _line(
    axes: "Axes",
    runs: Sequence[Run],
    name: str,
    label: str,
    *,
    relative: bool = False,
    colour: object = None,
) -> None:
    """The mean over seeds with a band of one std; nothing where it was not measured."""
    curves = [run.curve(name) for run in runs]
    if not all(len(versions) for versions, _ in curves):
        return
    if relative:
        curves = [(versions, values / values[0]) for versions, values in curves]
    versions, values, spread = _mean(curves)
    (line,) = axes.plot(versions, values, label=label, color=colour, linewidth=1.5)
    axes.fill_between(
        versions, values - spread, values + spread, color=line.get_color(), alpha=0.15, lw=0
    )


def _titled(axes: "Axes", title: str, *, legend: bool = True) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.ticklabel_format(useOffset=False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    plain(axes, grid="y")


def _colours(results: Results) -> dict[str, object]:
    """Grey for the reference, distinct ones for the rest."""
    from matplotlib import colormaps

    wheel = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    found: dict[str, object] = {}
    for name, row in results.rows.items():
        if row.kind == "reference":
            shade = 0.15 + 0.25 * sum(results.rows[n].kind == "reference" for n in found)
            found[name] = str(min(shade, 0.8))
        else:
            found[name] = wheel[len(found) % len(wheel)]
    return found
