"""What a comparison says, in words: in short, and row by row."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from percent_ray.comparison.results import Results
from percent_ray.comparison.tables import STOPPED, THERE, Line, has_gained, matched, reached
from percent_ray.evaluation.aggregate import mean_and_std

SHARE, KEEP = 0.9, 0.8
"""Of the reference's gain, where rows are compared; of the base's Vendi, that is asked for."""
LEVEL = 0.95
"""Of the intervals."""

Interval = tuple[float, float]


def in_short(results: Results) -> list[str]:
    """For someone who reads one paragraph: what the reference's training has cost, which row keeps
    most diversity at the same reward, by how much, and how sure that is. Two sentences and one for
    each space of the encoders that are not the reward's."""
    spaces = _spaces(results)
    if not has_gained(results):
        nothing = "It has gained none of that reward: nothing is compared at the same reward."
        return [_cost(results, spaces[0]), nothing]
    lines = {line.name: line for line in matched(results, SHARE)}
    kept = [_kept(results, lines, space) for space in spaces]
    return [_cost(results, spaces[0]), *(text for text, _ in kept), _sure(results, lines, kept)]


def _cost(results: Results, space: str) -> str:
    """What the reference has gained and lost over its training."""
    assert results.reference is not None  # `matched` has refused
    runs, label = results.runs[results.reference], results.rows[results.reference].label
    reward, vendi = (np.mean([run.last[c] for run in runs]) for c in (results.reward, space))
    unit = results.units.get(results.reward, "")
    return (
        f"Trained for reward alone, {label} moves {_name(results.reward)} from "
        f"{results.base[results.reward]:.3f} to {reward:.3f}{f' ({unit})' if unit else ''}; of "
        f"{results.comparison.evaluation.images} pictures of a prompt, {results.base[space]:.1f} "
        f"counted as different before ({space}) and {vendi:.1f} do at its end."
    )


def _kept(results: Results, lines: Mapping[str, Line], space: str) -> tuple[str, Interval | None]:
    """Which row keeps most Vendi in a space at the same reward, and the interval of its lead over
    early stopping, in shares of the base's Vendi."""
    stopped = lines[STOPPED].cells[space]
    where = f"At the same reward, {SHARE:.0%} of that gain, in the {_name(space)} space:"
    best = _best(results, lines, space)
    if best is None or not stopped:
        return f"{where} no method gets there in all seeds, so none can be compared.", None
    lead = float(np.mean(best.cells[space]) - np.mean(stopped))
    between = interval(best.cells[space], stopped)
    told = f"; {LEVEL:.0%} interval {between[0]:+.0%} to {between[1]:+.0%}" if between else ""
    own = ""
    if _name(space) in results.trained_on[best.name]:
        own = ", which was trained on that space"
        others = {
            n: o for n, o in lines.items() if _name(space) not in results.trained_on.get(n, ())
        }
        if next_best := _best(results, others, space):
            kept = _percent(next_best.cells[space])
            own += f" (of those that were not, {next_best.label} keeps most, {kept}),"
    text = (
        f"{where} {best.label}{own} keeps {_percent(best.cells[space])} of the base model's "
        f"{space}, {'more than' if lead > 0 else 'and no other method more; not more than'} the "
        f"best reference stopped there, {_percent(stopped)} (difference {lead:+.0%}{told})."
    )
    return text, between


def _sure(
    results: Results, lines: Mapping[str, Line], kept: Sequence[tuple[str, Interval | None]]
) -> str:
    """How far the leads can be trusted."""
    rows = _competing(lines)
    late = sum(not _all_there(line, results) for line in rows)
    missing = (
        f" {late} of {len(rows)} methods do not get to that reward in every seed and are not "
        "compared."
        if late
        else ""
    )
    found = [between for _, between in kept if between is not None]
    if late == len(rows):
        sure = "How sure: nothing was compared."
    elif not found:
        sure = (
            "How sure: not at all, an interval needs two seeds of a method and of the reference "
            "that get there and differ, and another seed may turn it round; give --seeds 1,2,3."
        )
    else:
        apart = sum(low > 0 for low, _ in found)
        none = f", {len(kept) - len(found)} have none" * (len(found) < len(kept))
        sure = (
            f"How sure: the interval over seeds lies above 0 in {apart} of {len(kept)} spaces"
            f"{none}. The best of {len(rows) - late} methods was picked, which flatters it."
        )
    return sure + missing


def named(results: Results) -> str | None:
    """The row that `in_short` names first; None where none can be compared."""
    if not has_gained(results):
        return None
    lines = {line.name: line for line in matched(results, SHARE)}
    best = _best(results, lines, _spaces(results)[0])
    return None if best is None else best.name


def _all_there(line: Line, results: Results) -> bool:
    """Whether every seed that was asked for has been run and gets to the reward."""
    return line.cells[THERE][0] == len(results.comparison.seeds)


def _best(results: Results, lines: Mapping[str, Line], space: str) -> Line | None:
    """The method that keeps most Vendi in a space, of those that get there in every seed."""
    there = [line for line in _competing(lines) if _all_there(line, results)]
    return max(there, key=lambda line: float(np.mean(line.cells[space])), default=None)


def _spaces(results: Results) -> list[str]:
    """Columns of Vendi that are told of."""
    return [f"vendi/{name}" for name in results.others] or results.vendi[:1]


def _competing(lines: Mapping[str, Line]) -> list[Line]:
    return [line for line in lines.values() if line.kind in ("baseline", "paper", "ours")]


def interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Of the difference of two means over seeds, by Welch's t; None for fewer than 2 seeds of
    either, and where no seed differs from another."""
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2 or not np.ptp(first) + np.ptp(second) > 0:
        return None
    found = ttest_ind(first, second, equal_var=False).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def verdict(results: Results, share: float = SHARE, keep: float = KEEP) -> list[str]:
    """For every method of ours and every space that it was not trained on: what it keeps at `share`
    of the reference's gain, or where not all of its seeds get there, at what all have reached; and
    whether its seeds lie above those of early stopping."""
    if not has_gained(results):
        return []
    return [
        line
        for name, row in results.rows.items()
        if row.kind == "ours" and name in results.runs
        for line in _of(results, name, share, keep)
    ]


def _of(results: Results, name: str, share: float, keep: float) -> Iterator[str]:
    label = results.rows[name].label
    if len(results.runs[name]) < 2:
        yield f"{label}: one seed, which has no spread; no verdict"
        return
    own = reached(results, name)
    if own < share:
        yield (
            f"{label}: its seeds do not all get to {share:.0%} of the gain; compared at {own:.0%}"
            if own > 0
            else f"{label}: its seeds do not all gain reward; no verdict"
        )
        if own <= 0:
            return
    lines = {line.name: line for line in matched(results, min(share, own))}
    row, stopping = lines[name], lines[STOPPED]
    if len(next(iter(stopping.cells[space] for space in results.vendi))) < 2:
        yield f"{row.label}: fewer than 2 seeds of the reference get there; no verdict"
        return
    for space in results.vendi:
        if _name(space) in results.trained_on[row.name]:
            continue
        left, stopped = row.cells[space], stopping.cells[space]
        above = "above" if min(left) > max(stopped) else "not above"
        mean, _ = mean_and_std(left)
        yield (
            f"{row.label}, {_name(space)} space: keeps {mean:.0%} of the base's Vendi "
            f"({'yes' if mean >= keep else 'no'}, asked {keep:.0%}); seeds {spread(left)} "
            f"against early stopping's {spread(stopped)}: {above} it"
        )


def spread(values: Sequence[float]) -> str:
    """Least to largest, in percent."""
    return f"{min(values):.0%} to {max(values):.0%}" if values else "none"


def _percent(values: Sequence[float]) -> str:
    """Mean over seeds, and their spread where there are several."""
    seeds = f" (seeds {spread(values)})" if len(values) > 1 else ""
    return f"{np.mean(values):.0%}{seeds}"


def _name(column: str) -> str:
    return column.rpartition("/")[2]
