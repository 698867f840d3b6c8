"""The tables that can be made of a comparison's results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from percent_ray.comparison.results import Curve, Results, Run
from percent_ray.comparison.runs import BASE
from percent_ray.evaluation.aggregate import (
    at_reward,
    frontier_fit,
    mean_and_std,
    normalized_average,
)
from percent_ray.evaluation.movement import Movement, movement

SHARES = (0.5, 0.9)
"""Of the reference's reward gain: where methods are compared at the same reward."""


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
            for space in results.vendi:
                share_kept = _kept(results, space, _path(results, run, space), wanted)
                if share_kept is not None:
                    kept[space].append(share_kept)
            reached += bool(run.judged(results.reward)[1].max() >= wanted)
        gains = [(run.last[results.reward] - start) / (whole - start) for run in runs]
        row = results.rows[name]
        found.append(
            Matched(name, row.label, row.kind, kept, reached, len(runs), mean_and_std(gains))
        )
    return found


def early_stopping(results: Results, space: str, share: float) -> dict[int, float]:
    """By seed, the largest share of the base's Vendi that any reference row keeps at the reward of
    `share`: the best that stopping early, at the best learning rate, would have done."""
    wanted = level(results, share)
    best: dict[int, float] = {}
    for name, row in results.rows.items():
        if row.kind != "reference":
            continue
        for run in results.runs[name]:
            kept = _kept(results, space, _path(results, run, space), wanted)
            if kept is not None:
                best[run.seed] = max(best.get(run.seed, 0.0), kept)
    return best


def _path(results: Results, run: Run, space: str) -> Curve:
    """(reward, Vendi) of a run's judged checkpoints, from the base on."""
    return run.judged(results.reward)[1], run.judged(space)[1]


def _kept(results: Results, space: str, path: Curve, wanted: float) -> float | None:
    """The share of the base's Vendi where a path of (reward, Vendi) first reaches a reward."""
    value = at_reward(*path, wanted)
    return None if value is None else value / results.base[space]


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
    return _kept(results, space, chosen(results, space), level(results, share))


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

    Raises ValueError where the references have too few checkpoints.
    """
    start, whole = results.base[results.reward], results.base[space]

    def path(run: Run) -> tuple[np.ndarray, np.ndarray]:
        """(reward gained, share of Vendi lost, below 0) after the base model."""
        rewards, values = _path(results, run, space)
        return rewards[1:] - start, values[1:] / whole - 1

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


def movements(results: Results) -> Mapping[str, Sequence[Movement]]:
    """By row and seed: where the last checkpoint draws what the base model drew from the same
    noise."""
    before = results.base_pictures()
    return {
        name: [movement(before, run.pictures()) for run in runs]
        for name, runs in results.runs.items()
    }


def verdict(results: Results, share: float = 0.9, keep: float = 0.8) -> list[str]:
    """For every method of ours and every space that it was not trained on: what it keeps at `share`
    of the reference's gain, and whether its seeds lie above those of early stopping."""
    found: list[str] = []
    for line in matched(results, share):
        if line.kind != "ours":
            continue
        if line.seeds < 2:
            found.append(f"{line.label}: one seed, which has no spread; no verdict")
            continue
        if line.reached < line.seeds:
            found.append(
                f"{line.label}: {line.reached} of {line.seeds} seeds reach {share:.0%} of the "
                "gain; no verdict"
            )
            continue
        for space, kept in line.kept.items():
            name = space.removeprefix("vendi/")
            if name in results.trained_on[line.name]:
                continue
            stopped = early_stopping(results, space, share)
            apart = bool(stopped) and min(kept) > max(stopped.values())
            mean, _ = mean_and_std(kept)
            found.append(
                f"{line.label}, {name} space: keeps {mean:.0%} of the base's Vendi "
                f"({'yes' if mean >= keep else 'no'}, asked {keep:.0%}); seeds "
                f"{min(kept):.0%} to {max(kept):.0%} against early stopping's "
                f"{spread(list(stopped.values()))}: {'above' if apart else 'not above'} it"
            )
    return found


def spread(values: Sequence[float]) -> str:
    """Least to largest, in percent."""
    return f"{min(values):.0%} to {max(values):.0%}" if values else "none"


@dataclass(frozen=True)
class Tables:
    """Everything that a report says in numbers."""

    lines: Sequence[Line]
    """Table 1."""
    tasks: Sequence[Line]
    """Table S1; empty where none of its rows has been run."""
    matched: Mapping[float, Sequence[Matched]]
    """By share of the reference's gain."""
    frontiers: Mapping[str, Frontier]
    """By space."""
    movements: Mapping[str, Sequence[Movement]]
    """By row, of every seed."""
    verdict: Sequence[str]


def tabulate(results: Results, geneval: Results) -> Tables:
    """Every table; `results` are those of table 1, `geneval` those of table S1."""
    return Tables(
        lines=table_1(results),
        tasks=table_s1(geneval) if geneval.runs else (),
        matched={share: matched(results, share) for share in SHARES},
        frontiers={space: frontier(results, space) for space in results.vendi},
        movements=movements(results),
        verdict=verdict(results),
    )
