"""From what is on disk to the numbers of every row, and evaluation.json."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from percent_ray.evaluation.plan import Plan
from percent_ray.evaluation.quality import LATENT, Asked, by_prompt
from percent_ray.evaluation.statistics import ByPrompt, differences, estimates
from percent_ray.evaluation.store import JudgedPrompts, RowStore, Store
from percent_ray.evaluation.tables import Measured, Table, failure_tables, main_table, task_tables

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that an evaluation says in numbers. A pure function of what is on disk."""

    plan: Plan
    rows: tuple[Measured, ...]
    """Those of which anything was measured."""
    units: Mapping[str, str]
    """By judge."""
    against: str
    """Label of the row that the others are tested against."""
    table: Table
    tasks: Mapping[str, Table]
    """By judge."""
    failures: Mapping[str, Table]
    """By judge."""
    missing: tuple[str, ...]
    """A line for each row and judge that has not judged every prompt."""

    def contents(self) -> dict[str, Any]:
        """Of evaluation.json."""
        evaluation = self.plan.evaluation
        shared = ("prompts", "images", "seed", "judges", "encoders")
        return {
            "protocol": {key: getattr(evaluation, key) for key in shared},
            "units": self.units,
            "against": self.against,
            "missing": self.missing,
            "rows": {
                row.label: {
                    "is": row.about,
                    "means": {name: asdict(found) for name, found in row.means.items()},
                    "against": {name: asdict(found) for name, found in row.against.items()},
                    "averages": self.table.averages.get(row.label, {}),
                }
                for row in self.rows
            },
        }


def collect(plan: Plan, store: Store, *, tell: Callable[[str], None]) -> Results:
    """Measure every row of what its judges have said; `tell` is called with a row's label before.

    One prompt of one row is in memory at a time.
    """
    numbers: dict[str, ByPrompt] = {}
    units: dict[str, str] = {}
    missing: list[str] = []
    for row in plan.rows:
        tell(row.label)
        place, count = store.row(row.name), len(plan.prompts)
        numbers[row.label] = by_prompt(judged(plan, place))
        for name, asked in plan.asked.items():
            there = [n for n in range(count) if place.has(name, n)]
            if len(there) < count:
                missing.append(f"{row.label}: {name} has judged {len(there)} of {count} prompts")
            if there and name not in units and (report := place.get(name, there[0], asked).report):
                units[name] = report.unit
    labels = [row.label for row in plan.rows if numbers[row.label]]
    against = plan.evaluation.against or next(iter(labels), "")
    rows = tuple(
        Measured(
            label=row.label,
            about=row.about,
            means=estimates(numbers[row.label]),
            against=differences(numbers[row.label], numbers[against])
            if row.label != against and numbers[against]
            else {},
        )
        for row in plan.rows
        if row.label in labels
    )
    return Results(
        plan=plan,
        rows=rows,
        units=units,
        against=against,
        table=main_table(plan.evaluation, rows),
        tasks=task_tables(plan.evaluation, rows),
        failures=failure_tables(plan.evaluation, rows),
        missing=tuple(missing),
    )


def judged(plan: Plan, place: RowStore) -> JudgedPrompts:
    """All that is there of a row, latents among it."""
    latents = Asked(reports=False, encodes=True)
    return place.judged({**plan.asked, LATENT: latents}, len(plan.prompts))


def dump(results: Results) -> str:
    """The text of evaluation.json."""
    return json.dumps(results.contents(), indent=1)
