"""The tables that can be made of a comparison's results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from percent_ray.comparison.plan import BASE
from percent_ray.comparison.results import Curve, Results, Run
from percent_ray.evaluation import aggregate
from percent_ray.monitor.movement import movement

SHARES = (0.5, 0.9)
"""Of the reference's reward gain: where methods are compared at the same reward."""
THERE = "seeds there"
GAIN = "last gain"
SPENT = ("images", "minutes")
"""Of training, until the reward was reached."""
STOPPED = "early_stopping"
CHOSEN = "choosing"


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    name: str
    label: str
    kind: str
    cells: Mapping[str, Sequence[float]]
    """By column, the values of the seeds that have one."""
    seeds: int = 0


def _line(results: Results, name: str, cells: Mapping[str, Sequence[float]]) -> Line:
    row = results.rows[name]
    return Line(name, row.label, row.kind, cells, len(results.runs[name]))


def _last(results: Results, columns: Sequence[str]) -> list[Line]:
    """Last checkpoints; the base model is the first line."""
    base = Line(BASE, "base model", "base", {c: [results.base[c]] for c in columns}, 1)
    return [base] + [
        _line(results, name, {c: [run.last[c] for run in runs] for c in columns})
        for name, runs in results.runs.items()
    ]


def table_1(results: Results) -> list[Line]:
    """The paper's table 1: quality and diversity of the last checkpoint, their normalised averages
    over the rows here, and their mean. The base model is the first line."""
    lines = _last(results, [*results.quality, *results.diversity])
    quality, diversity = (
        aggregate.normalized_average([[np.mean(line.cells[c]) for c in columns] for line in lines])
        for columns in (results.quality, results.diversity)
    )
    overall = (quality + diversity) / 2
    averages = {"quality average": quality, "diversity average": diversity, "overall": overall}
    return [
        replace(line, cells={**line.cells, **{c: [float(v[i])] for c, v in averages.items()}})
        for i, line in enumerate(lines)
    ]


def table_s1(results: Results) -> list[Line]:
    """The paper's table S1: the tasks of the judges that have any, as GenEval's, at the last
    checkpoint, the base model first."""
    judged: list[str] = []
    for judge in results.comparison.evaluation.judges:
        if tasks := [name for name in results.base if name.startswith(f"{judge}/")]:
            judged += [f"quality/{judge}", *tasks]
    return _last(results, list(dict.fromkeys((*judged, *results.quality, *results.vendi))))


def level(results: Results, share: float) -> float:
    """The reward at `share` of what the first reference row has gained at its end, mean over its
    seeds. Raises ValueError without a reference row."""
    if results.reference is None:
        raise ValueError("no row of kind reference has finished; run one")
    start = results.base[results.reward]
    end = np.mean([run.last[results.reward] for run in results.runs[results.reference]])
    return float(start + share * (end - start))


def has_gained(results: Results) -> bool:
    """Whether the first reference row has gained any reward at its end; else there is no reward at
    which rows could be compared."""
    return level(results, 1.0) > level(results, 0.0)


def reached(results: Results, row: str) -> float:
    """The share of the reference's gain that every seed of a row has been at, rounded down to the
    percent."""
    start, whole = level(results, 0.0), level(results, 1.0)
    tops = [run.judged(results.reward)[1].max() for run in results.runs[row]]
    return math.floor(100 * (min(tops) - start) / (whole - start)) / 100


def kept(results: Results, space: str, path: Run | Curve, reward: float) -> float | None:
    """The share of the base's Vendi that is left where a run, or a curve of Vendi over reward that
    starts at the base, first reaches a reward, linear between its points; None where it never does.
    """
    value = aggregate.at_reward(
        *(_path(results, space, path) if isinstance(path, Run) else path), reward
    )
    return None if value is None else value / results.base[space]


def _path(results: Results, space: str, run: Run) -> Curve:
    """(reward, Vendi) of a run's judged checkpoints, from the base on."""
    return run.judged(results.reward)[1], run.judged(space)[1]


def chosen(results: Results, space: str) -> Curve:
    """(reward, Vendi) of choosing among the base model's own pictures, from the base on; empty
    where that was not measured. Both are taken relative to pictures that are not chosen: those are
    others than the base was judged by."""
    rewards = np.array([numbers[results.reward] for numbers in results.selection])
    values = np.array([numbers[space] for numbers in results.selection])
    gains, shares = rewards - rewards[:1], values / values[:1]
    return results.base[results.reward] + gains, results.base[space] * shares


def matched(results: Results, share: float) -> list[Line]:
    """Every row at the reward of `share` of the reference's gain: what its seeds that get there
    have kept, by space, what share of the gain its last checkpoints have, and what getting there
    has taken.

    Then two lines to compare with: `STOPPED`, by seed the best that stopping any reference row
    early, at the best learning rate, would have done; and `CHOSEN`, choosing among the base's own
    pictures, which has no value where the pool has none of that reward.

    Raises ValueError where the reference has gained no reward (`has_gained`).
    """
    if not has_gained(results):
        raise ValueError(f"{results.reference} has gained no {results.reward}")
    start, wanted, whole = (level(results, s) for s in (0.0, share, 1.0))
    spaces = results.vendi

    def left(space: str, paths: Sequence[Run | Curve]) -> list[float]:
        shares = [kept(results, space, path, wanted) for path in paths]
        return [share for share in shares if share is not None]

    lines: list[Line] = []
    for name, runs in results.runs.items():
        gains = [(run.last[results.reward] - start) / (whole - start) for run in runs]
        cells = {space: left(space, runs) for space in spaces}
        there = len(cells[spaces[0]])
        cells = {THERE: [there], GAIN: gains, **cells, **_spent(results, runs, wanted)}
        lines.append(_line(results, name, cells))
    by_seed = [[r for r in results.references if r.seed == s] for s in results.comparison.seeds]
    stopped: dict[str, list[float]] = {}
    for space in spaces:
        seeds = [left(space, runs) for runs in by_seed]
        stopped[space] = [max(shares) for shares in seeds if shares]
    choice = {space: left(space, [chosen(results, space)]) for space in spaces}
    label = "early stopping at the best learning rate, by seed"
    before, after = ({name: [] for name in names} for names in ((THERE, GAIN), SPENT))
    lines.append(Line(STOPPED, label, "reference", {**before, **stopped, **after}))
    label = "choosing among the base model's own pictures"
    return [*lines, Line(CHOSEN, label, "base", {**before, **choice, **after})]


def _spent(results: Results, runs: Sequence[Run], reward: float) -> dict[str, list[float]]:
    """Images sampled, and minutes, until each run first reaches a reward."""
    found: dict[str, list[float]] = {name: [] for name in SPENT}
    for run in runs:
        for name, values, unit in zip(SPENT, run.spent(), (1, 60), strict=True):
            _, rewards = run.judged(results.reward)
            value = aggregate.at_reward(rewards, values, reward) if len(values) else None
            found[name] += [] if value is None else [value / unit]
    return found


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

    def path(run: Run) -> Curve:
        """(reward gained, share of Vendi lost, below 0) after the base model."""
        rewards, values = _path(results, space, run)
        return rewards[1:] - rewards[0], values[1:] / values[0] - 1

    def fit(runs: Sequence[Run]) -> tuple[np.ndarray, float]:
        gains, losses = zip(*map(path, runs), strict=True) if runs else ((), ())
        return aggregate.frontier_fit(np.concatenate([[], *gains]), np.concatenate([[], *losses]))

    every = [run for runs in results.runs.values() for run in runs]
    (first, second), r2 = fit(results.references)
    reached = max(path(run)[0].max() for run in results.references)
    above: dict[str, list[float]] = {}
    for run in every:
        gain, loss = path(run)
        seen = (gain >= 0) & (gain <= reached)
        if seen.any():
            left = (loss - first * gain - second * gain**2)[seen]
            above.setdefault(run.row, []).append(float(left.mean()))
    return Frontier(r2, fit(every)[1], above)


@dataclass(frozen=True)
class Tables:
    """Everything that a report says in numbers."""

    lines: Sequence[Line]
    """Table 1."""
    tasks: Sequence[Line]
    """Table S1; empty where none of its rows has been run."""
    matched: Mapping[float, Sequence[Line]]
    """By share of the reference's gain."""
    frontiers: Mapping[str, Frontier]
    """By space."""
    above: Sequence[Line]
    """The same as a table."""
    moved: Sequence[Line]
    """`Movement` from the base model's pictures to the last checkpoint's of the same noise."""


def tabulate(results: Results, geneval: Results) -> Tables:
    """Every table; `results` are those of table 1, `geneval` those of table S1, which are the same
    where the reward of all has tasks."""
    tasked = geneval if geneval.runs else results if results.by_task else None
    frontiers = {space: frontier(results, space) for space in results.vendi}
    above = {row: {s: f.above.get(row, ()) for s, f in frontiers.items()} for row in results.rows}
    before = results.base_pictures()
    moved: list[Line] = []
    for row, runs in results.runs.items():
        seeds = [asdict(movement(before, run.pictures())) for run in runs]
        moved.append(_line(results, row, {c: [s[c] for s in seeds] for c in seeds[0]}))
    return Tables(
        lines=table_1(results),
        tasks=() if tasked is None else table_s1(tasked),
        matched={s: matched(results, s) for s in SHARES if has_gained(results)},
        frontiers=frontiers,
        above=[_line(results, row, cells) for row, cells in above.items()],
        moved=moved,
    )
