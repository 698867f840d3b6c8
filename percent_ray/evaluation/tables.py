"""The paper's tables of the rows at hand (arXiv 2605.12112, tables 1, 2, S1 and S2)."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from percent_ray.evaluation.aggregate import normalized_average
from percent_ray.evaluation.plan import Evaluation
from percent_ray.evaluation.statistics import Difference, Estimate

VARIANCES = ("dino", "clip")
"""Kinds of encoder whose feature variance is a column, as in the paper."""
AVERAGES = ("quality average", "diversity average", "overall")
"""Norm.Avg of the columns of quality and of diversity, over the rows of the table; their mean."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one row."""

    label: str
    about: str
    """What it is, in a line."""
    means: Mapping[str, Estimate]
    """By the names of `quality.by_prompt`."""
    against: Mapping[str, Difference]
    """Its numbers minus those of the row that all are tested against; empty for that one."""


@dataclass(frozen=True, slots=True)
class Table:
    """A line for each row."""

    columns: tuple[str, ...]
    """Names of `Measured.means`."""
    rows: tuple[Measured, ...]
    averages: Mapping[str, Mapping[str, float]]
    """By label and `AVERAGES`; of the rows that have every column, where these are two or more."""


def quality(evaluation: Evaluation) -> list[str]:
    return [f"quality/{name}" for name in evaluation.judges]


def diversity(evaluation: Evaluation) -> list[str]:
    """Variance of the encoders of `VARIANCES`, and Vendi in the space of each."""
    kinds = {name: evaluation.scorers[name].kind or name for name in evaluation.encoders}
    varied = [f"variance/{name}" for kind in VARIANCES for name in kinds if kinds[name] == kind]
    return varied + [f"vendi/{name}" for name in evaluation.encoders]


def main_table(evaluation: Evaluation, rows: Sequence[Measured]) -> Table:
    """Quality, diversity and their averages: the layout of tables 1, 2 and S2."""
    parts = (quality(evaluation), diversity(evaluation))
    columns = tuple(name for part in parts for name in part)
    whole = [row for row in rows if all(name in row.means for name in columns)]
    averages: dict[str, dict[str, float]] = {}
    if len(whole) > 1 and all(parts):
        found = [
            normalized_average([[row.means[name].mean for name in part] for row in whole])
            for part in parts
        ]
        found.append((found[0] + found[1]) / 2)
        for i, row in enumerate(whole):
            averages[row.label] = {
                name: float(each[i]) for name, each in zip(AVERAGES, found, strict=True)
            }
    return Table(columns, tuple(rows), averages)


def task_tables(evaluation: Evaluation, rows: Sequence[Measured]) -> dict[str, Table]:
    """Of every judge whose benchmark has tasks, as GenEval's, a table of them: the layout of table
    S1. `overall` is the mean over tasks, as GenEval reports it."""
    found: dict[str, Table] = {}
    for judge in evaluation.judges:
        names = dict.fromkeys(
            name for row in rows for name in row.means if name.startswith(f"{judge}/")
        )
        if names:
            averages = {
                row.label: {"overall": sum(row.means[n].mean for n in names) / len(names)}
                for row in rows
                if all(name in row.means for name in names)
            }
            found[judge] = Table(tuple(names), tuple(rows), averages)
    return found


def failure_tables(evaluation: Evaluation, rows: Sequence[Measured]) -> dict[str, Table]:
    """Of every judge that says why it calls a picture wrong: a line for each row and task, a column
    for each reason, the share of the task's pictures with it."""
    found: dict[str, Table] = {}
    for judge in evaluation.judges:
        lines: dict[str, Measured] = {}
        for row in rows:
            reasons: dict[str, dict[str, Estimate]] = {}
            for name, estimate in row.means.items():
                if name.startswith(f"failed/{judge}/"):
                    task, reason = name.split("/")[2:]
                    reasons.setdefault(task, {})[reason] = estimate
            for task, means in reasons.items():
                right = {"right": row.means[f"{judge}/{task}"]}
                label = f"{row.label}: {task}"
                lines[label] = Measured(label, row.about, right | means, {})
        if lines:
            columns = dict.fromkeys(name for line in lines.values() for name in line.means)
            found[judge] = Table(tuple(columns), tuple(lines.values()), {})
    return found


def write_csv(table: Table, path: Path) -> None:
    """A line for each row: label, then mean and interval of each column, then the averages."""
    averages = list(next(iter(table.averages.values()), {}))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        cells = (f"{name}{part}" for name in table.columns for part in ("", " low", " high"))
        out.writerow(["row", *cells, *averages])
        for row in table.rows:
            values: list[float | None] = []
            for name in table.columns:
                found = row.means.get(name)
                values += [found.mean, found.low, found.high] if found else [None] * 3
            values += [table.averages.get(row.label, {}).get(name) for name in averages]
            out.writerow([row.label, *("" if v is None else f"{v:.6g}" for v in values)])
