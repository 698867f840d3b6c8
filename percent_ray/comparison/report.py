"""The report of a comparison: one self-contained HTML page, the same numbers as CSV and JSON, the
figures as PNG, and a copy of all of it in MLflow."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from percent_ray.comparison import figures
from percent_ray.comparison.page import page
from percent_ray.comparison.results import Results
from percent_ray.comparison.tables import Line, Tables
from percent_ray.monitor.tracking import Tracker


def write(results: Results, tables: Tables, command: str) -> Path:
    """Write `report.html`, its tables and figures into the comparison's folder; returns the page.

    `results` are those of table 1; `command` is what makes it anew.
    """
    folder = results.comparison.home
    drawn = figures.draw(results, folder / "figures")
    _write_csv(tables.lines, folder / "table_1.csv")
    if tables.tasks:
        _write_csv(tables.tasks, folder / "table_s1.csv")
    (folder / "results.json").write_text(json.dumps(_numbers(results, tables), indent=1))
    path = folder / "report.html"
    path.write_text(page(results, tables, drawn, command), encoding="utf-8")
    return path


def track(results: Results, tables: Tables, tracking_uri: str, experiment: str) -> None:
    """A copy of the report and of every number in MLflow, as a run of the comparison's name."""
    folder = results.comparison.home
    tracker = Tracker(
        folder / "report",
        tracking_uri=tracking_uri,
        experiment=experiment,
        run_name=results.comparison.name,
    )
    tracker.params({"seeds": results.comparison.seeds, "rows": ", ".join(results.runs)})
    for line in tables.lines:
        for name, (mean, _) in line.cells.items():
            tracker.metrics(0, {f"{line.name}/{name}".replace(" ", "_"): mean})
    for name in ("report.html", "table_1.csv", "results.json", "figures"):
        tracker.file(folder / name, "figures" if name == "figures" else "report")
    tracker.close()


def _write_csv(lines: Sequence[Line], path: Path) -> None:
    columns = list(lines[0].cells)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(
            ["row", "label", "seeds", *(f"{c} {w}" for c in columns for w in ("mean", "std"))]
        )
        for line in lines:
            values = [f"{v:.6g}" for c in columns for v in line.cells[c]]
            out.writerow([line.name, line.label, line.seeds, *values])


def _numbers(results: Results, tables: Tables) -> dict[str, object]:
    return {
        "base": dict(results.base),
        "table_1": {line.name: dict(line.cells) for line in tables.lines},
        "matched": {
            str(share): {
                line.name: {"kept": dict(line.kept), "reached": line.reached, "gain": line.gain}
                for line in table
            }
            for share, table in tables.matched.items()
        },
        "above_frontier": {
            space: {"r2": found.r2, "r2_all": found.r2_all, "rows": dict(found.above)}
            for space, found in tables.frontiers.items()
        },
        "movement": {
            name: [asdict(moved) for moved in found] for name, found in tables.movements.items()
        },
        "verdict": list(tables.verdict),
        "selection": list(map(dict, results.selection)),
        "curves": {
            name: {
                run.seed: {str(v): dict(m) for v, m in sorted(run.evaluations.items())}
                for run in runs
            }
            for name, runs in results.runs.items()
        },
    }
