"""What the runs of a comparison have left behind, and the tables that can be made of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from percent_ray.comparison.plan import Comparison, Plan, Row
from percent_ray.comparison.runs import BASE, PICTURES, RESULT, SELECTION, folder_of
from percent_ray.config import Recipe
from percent_ray.evaluation.aggregate import (
    at_reward,
    frontier_fit,
    mean_and_std,
    normalized_average,
)
from percent_ray.evaluation.quality import LATENT
from percent_ray.monitor import history

Curve = tuple[np.ndarray, np.ndarray]
"""(versions, values), both [n]."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    row: str
    seed: int
    folder: Path
    evaluations: Mapping[int, Mapping[str, float]]
    """The judged checkpoints by version, the base model as version 0."""
    steps: Mapping[int, Mapping[str, float]]
    """The metrics file: of every step, and under `probe/` of every probe."""

    @property
    def last(self) -> Mapping[str, float]:
        return self.evaluations[max(self.evaluations)]

    def judged(self, name: str) -> Curve:
        """A metric over the judged checkpoints."""
        versions = sorted(self.evaluations)
        return np.array(versions), np.array([self.evaluations[v][name] for v in versions])

    def curve(self, name: str) -> Curve:
        """A metric of the metrics file over the steps that have it."""
        found = sorted((step, m[name]) for step, m in self.steps.items() if name in m)
        return np.array([s for s, _ in found]), np.array([v for _, v in found])


@dataclass(frozen=True)
class Results:
    """The finished runs of a comparison."""

    comparison: Comparison
    base: Mapping[str, float]
    """The model before training."""
    runs: Mapping[str, Sequence[Run]]
    """By row, in the rows' order; rows without a finished run are left out."""
    trained_on: Mapping[str, frozenset[str]]
    """By row, the scorers whose spaces its reward or its method has used."""
    selection: Sequence[Mapping[str, float]]
    """Metrics of the base model's own pictures, chosen by the reward ever more strictly, the first
    not at all; empty where that was not asked for."""

    @property
    def rows(self) -> Mapping[str, Row]:
        return {name: self.comparison.rows[name] for name in self.runs}

    @property
    def reward(self) -> str:
        """The metric that the frontier is drawn over."""
        return f"quality/{self.comparison.evaluation.judges[0]}"

    @property
    def quality(self) -> list[str]:
        return [f"quality/{name}" for name in self.comparison.evaluation.judges]

    @property
    def diversity(self) -> list[str]:
        """Variances of the encoders that are not the reward's, and Vendi in every space."""
        encoders = self.comparison.evaluation.encoders
        reward = self.comparison.evaluation.judges[0]
        return [f"variance/{name}" for name in encoders if name != reward] + self.vendi

    @property
    def vendi(self) -> list[str]:
        """Vendi in every space."""
        return [f"vendi/{name}" for name in (*self.comparison.evaluation.encoders, LATENT)]

    @property
    def reference(self) -> str | None:
        """The first reference row that has a finished run."""
        return next((n for n, row in self.rows.items() if row.kind == "reference"), None)

    def picture_of(self, row: str) -> np.ndarray:
        """Pictures of the first seed's last checkpoint, or of the base model; [P, K, 3, H, W]."""
        folder = self.comparison.home / "runs" / BASE if row == BASE else self.runs[row][0].folder
        with np.load(folder / PICTURES) as file:
            return file["images"]


def read(plan: Plan, table: str = "1") -> Results:
    """The results so far of the rows of one table. Raises ValueError where the base model has not
    been judged."""
    comparison = plan.comparison
    path = comparison.home / "runs" / BASE / RESULT
    if not path.is_file():
        raise ValueError(f"no results in {comparison.home}: {path} is not there")
    base = json.loads(path.read_text())["versions"]["0"]
    runs: dict[str, list[Run]] = {}
    for row in (name for name, row in comparison.rows.items() if row.table == table):
        for seed in comparison.seeds:
            folder = folder_of(plan.recipe(row, seed))
            if not (folder / RESULT).is_file():
                continue
            found = json.loads((folder / RESULT).read_text())["versions"]
            evaluations = {0: base} | {int(version): m for version, m in found.items()}
            steps = history.read(folder / "metrics.jsonl")
            runs.setdefault(row, []).append(Run(row, seed, folder, evaluations, steps))
    used = {row: _trained_on(plan.recipe(row, comparison.seeds[0])) for row in runs}
    return Results(comparison, base, runs, used, _selection(comparison))


def _selection(comparison: Comparison) -> Sequence[Mapping[str, float]]:
    path = comparison.home / "runs" / BASE / SELECTION
    return json.loads(path.read_text())["strengths"] if path.is_file() else ()


def _trained_on(recipe: Recipe) -> frozenset[str]:
    reward = {name for name, scorer in recipe.scorers.items() if scorer.weight}
    method = recipe.method
    return frozenset(
        {*reward, *getattr(method, "spaces", ()), *getattr(method, "image_spaces", ())}
    )


@dataclass(frozen=True)
class Line:
    """One line of a table: means and standard deviations over seeds by column."""

    name: str
    label: str
    kind: str
    cells: Mapping[str, tuple[float, float]]
    seeds: int


def _lines(results: Results, columns: Sequence[str]) -> list[Line]:
    """Last checkpoints, mean and std over seeds; the base model is the first line."""
    lines = [Line(BASE, "base model", "base", {c: (results.base[c], 0.0) for c in columns}, 1)]
    for name, runs in results.runs.items():
        cells = {c: mean_and_std([run.last[c] for run in runs]) for c in columns}
        row = results.rows[name]
        lines.append(Line(name, row.label, row.kind, cells, len(runs)))
    return lines


def table_1(results: Results) -> list[Line]:
    """The paper's table 1: quality and diversity of the last checkpoint, their normalised averages
    over the rows here, and their mean. The base model is the first line."""
    columns = [*results.quality, *results.diversity]
    lines = _lines(results, columns)
    parts = {
        "quality average": [[line.cells[c][0] for c in results.quality] for line in lines],
        "diversity average": [[line.cells[c][0] for c in results.diversity] for line in lines],
    }
    averages = {name: normalized_average(cells) for name, cells in parts.items()}
    averages["overall"] = np.mean(list(averages.values()), axis=0)
    return [
        Line(
            line.name,
            line.label,
            line.kind,
            {**line.cells, **{name: (float(found[i]), 0.0) for name, found in averages.items()}},
            line.seeds,
        )
        for i, line in enumerate(lines)
    ]


def table_s1(results: Results) -> list[Line]:
    """The paper's table S1: GenEval's tasks at the last checkpoint, the base model first."""
    tasks = [name for name in results.base if name.startswith("geneval/")]
    columns = ["quality/geneval", *tasks, "quality/pickscore", "vendi/dino", "vendi/clip"]
    columns = [column for column in columns if column in results.base]
    return _lines(results, columns)


@dataclass(frozen=True)
class Matched:
    """What a row has kept of the base's diversity when it reaches a reward."""

    name: str
    label: str
    kind: str
    kept: Mapping[str, Sequence[float]]
    """Share of the base's Vendi by space, for every seed that gets there."""
    reached: int
    """Seeds that get there."""
    seeds: int
    gain: tuple[float, float]
    """Mean and std over seeds of the last checkpoint's share of the reference's gain."""


def level(results: Results, share: float) -> float:
    """The reward at `share` of what the first reference row has gained at its end, mean over its
    seeds. Raises ValueError without a reference row."""
    reference = results.reference
    if reference is None:
        raise ValueError("no row of kind reference has finished; run one")
    start = results.base[results.reward]
    end = np.mean([run.last[results.reward] for run in results.runs[reference]])
    return float(start + share * (end - start))


def matched(results: Results, share: float) -> list[Matched]:
    """Every row at the same reward, that of `share` of the reference's gain."""
    wanted, whole = level(results, share), level(results, 1.0)
    start = results.base[results.reward]
    found: list[Matched] = []
    for name, runs in results.runs.items():
        kept: dict[str, list[float]] = {space: [] for space in results.vendi}
        reached = 0
        for run in runs:
            _, rewards = run.judged(results.reward)
            for space in results.vendi:
                value = at_reward(rewards, run.judged(space)[1], wanted)
                if value is not None:
                    kept[space].append(value / results.base[space])
            reached += bool(rewards.max() >= wanted)
        gains = [(run.last[results.reward] - start) / (whole - start) for run in runs]
        row = results.rows[name]
        found.append(
            Matched(name, row.label, row.kind, kept, reached, len(runs), mean_and_std(gains))
        )
    return found


def early_stopping(results: Results, space: str, share: float) -> dict[int, float]:
    """By seed, the largest share of the base's Vendi that any reference row keeps at the reward of
    `share`: the best that stopping early, at the best learning rate, would have done."""
    best: dict[int, float] = {}
    for name, row in results.rows.items():
        if row.kind != "reference":
            continue
        for run in results.runs[name]:
            rewards, values = run.judged(results.reward)[1], run.judged(space)[1]
            value = at_reward(rewards, values, level(results, share))
            if value is not None:
                best[run.seed] = max(best.get(run.seed, 0.0), value / results.base[space])
    return best


def chosen(results: Results, space: str) -> Curve:
    """(reward, Vendi) of choosing among the base model's own pictures, from the base on. Both are
    taken relative to pictures that are not chosen: those are others than the base was judged by."""
    first = results.selection[0]
    gains = np.array([found[results.reward] - first[results.reward] for found in results.selection])
    kept = np.array([found[space] / first[space] for found in results.selection])
    return results.base[results.reward] + gains, results.base[space] * kept


def selected(results: Results, space: str, share: float) -> float | None:
    """The share of the base's Vendi that choosing keeps at the reward of `share`; None where the
    pool has no such pictures, or there is none."""
    if not results.selection:
        return None
    value = at_reward(*chosen(results, space), level(results, share))
    return None if value is None else value / results.base[space]


@dataclass(frozen=True)
class Frontier:
    """How far the rows lie above the early-stopping frontier in one space."""

    r2: float
    """Of the references' fit: how much of their Vendi the reward alone explains."""
    r2_all: float
    """The same of a curve through the checkpoints of all rows: near 1, all move along one curve."""
    above: Mapping[str, Sequence[float]]
    """By row and seed: Vendi minus the frontier's at the same reward, as a share of the base's,
    mean over the judged checkpoints whose reward the references have reached."""


def frontier(results: Results, space: str) -> Frontier:
    """All checkpoints count, so that this is less noisy than `matched` at one reward.

    Raises ValueError where the references have fewer than 3 checkpoints.
    """
    start, whole = results.base[results.reward], results.base[space]

    def path(run: Run) -> tuple[np.ndarray, np.ndarray]:
        """(reward gained, share of Vendi lost, below 0) after the base model."""
        return run.judged(results.reward)[1][1:] - start, run.judged(space)[1][1:] / whole - 1

    def fit(runs: Sequence[Run]) -> tuple[np.ndarray, float]:
        gains, losses = zip(*map(path, runs), strict=True) if runs else ((), ())
        return frontier_fit(np.concatenate([[], *gains]), np.concatenate([[], *losses]))

    every = [run for runs in results.runs.values() for run in runs]
    references = [run for run in every if results.rows[run.row].kind == "reference"]
    (first, second), r2 = fit(references)
    reached = max(path(run)[0].max() for run in references)
    above: dict[str, list[float]] = {}
    for name, runs in results.runs.items():
        for run in runs:
            gain, loss = path(run)
            seen = (gain >= 0) & (gain <= reached)
            if seen.any():
                left = (loss - first * gain - second * gain**2)[seen]
                above.setdefault(name, []).append(float(left.mean()))
    return Frontier(r2, fit(every)[1], above)
