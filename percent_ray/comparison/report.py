"""The report of a comparison: one self-contained HTML page, the same numbers as CSV and JSON, the
figures as PNG, and a copy of all of it in MLflow."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from percent_ray.comparison import figures
from percent_ray.comparison.results import Results
from percent_ray.comparison.tables import GAIN, SPENT, STOPPED, THERE, Line, Tables
from percent_ray.comparison.verdict import in_short, spread, verdict
from percent_ray.evaluation.aggregate import mean_and_std
from percent_ray.monitor.tracking import Tracker
from percent_ray.pages.page import render
from percent_ray.recipe.tree import Monitor


def write(results: Results, tables: Tables, command: str) -> Path:
    """Write `report.html`, its tables and figures into the comparison's folder; returns the page.

    `results` are those of table 1; `command` is what makes it anew.
    """
    folder = results.comparison.home
    figures.save(results, figures.draw(results), folder / "figures")
    _write_csv(tables.lines, folder / "table_1.csv")
    if tables.tasks:
        _write_csv(tables.tasks, folder / "table_s1.csv")
    (folder / "results.json").write_text(json.dumps(_numbers(results, tables), indent=1))
    path = folder / "report.html"
    path.write_text(page(results, tables, command), encoding="utf-8")
    return path


def page(results: Results, tables: Tables, command: str) -> str:
    """HTML."""
    fits = {
        space: f"R² {fit.r2:.2f}, of all rows {fit.r2_all:.2f}"
        for space, fit in tables.frontiers.items()
    }
    return render(
        Path(__file__).parent / "page.html.jinja",
        results=results,
        tables=tables,
        short=in_short(results),
        verdict=verdict(results),
        films=figures.films(results),
        charts=figures.draw(results),
        laws_found=figures.laws(results),
        fits=fits,
        command=command,
        stopped=STOPPED,
        mean_and_std=mean_and_std,
        spread=spread,
        best=lambda lines, column: max((line.cells[column] for line in lines), key=np.mean),
    )


def track(results: Results, tables: Tables, monitor: Monitor) -> None:
    """A copy of the report and of every number in MLflow, as a run of the comparison's name: one
    however often it is written."""
    folder = results.comparison.home
    known = folder / "mlflow_run"
    tracker = Tracker(
        folder / "report",
        tracking_uri=monitor.tracking_uri,
        experiment=monitor.experiment,
        run_name=results.comparison.name,
        run_id=known.read_text(encoding="utf-8") if known.is_file() else None,
    )
    tracker.params({"seeds": results.comparison.seeds, "rows": ", ".join(results.runs)})
    means = {
        f"{line.name}/{name}".replace(" ", "_"): mean_and_std(values)[0]
        for line in tables.lines
        for name, values in line.cells.items()
    }
    tracker.metrics(0, means)
    for name in ("report.html", "table_1.csv", "table_s1.csv", "results.json", "figures"):
        if (folder / name).exists():
            tracker.file(folder / name, "figures" if name == "figures" else "report")
    tracker.close()
    if tracker.run_id:
        known.write_text(tracker.run_id, encoding="utf-8")


def _write_csv(lines: Sequence[Line], path: Path) -> None:
    columns = list(lines[0].cells)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(
            ["row", "label", "seeds", *(f"{c} {w}" for c in columns for w in ("mean", "std"))]
        )
        for line in lines:
            cells = [v for c in columns for v in mean_and_std(line.cells[c])]
            values = ["" if v is None else f"{v:.6g}" for v in cells]  # one seed has no std
            out.writerow([line.name, line.label, line.seeds, *values])


def _numbers(results: Results, tables: Tables) -> dict[str, object]:
    return {
        "base": results.base,
        "table_1": {
            line.name: {name: mean_and_std(values) for name, values in line.cells.items()}
            for line in tables.lines
        },
        "matched": {
            str(share): {
                line.name: {
                    "kept": {space: line.cells[space] for space in results.vendi},
                    "reached": line.cells[THERE][0],
                    "spent": {name: line.cells[name] for name in SPENT},
                    "gain": mean_and_std(line.cells[GAIN]),
                }
                for line in lines
                if line.name in results.rows
            }
            for share, lines in tables.matched.items()
        },
        "above_frontier": {
            space: {"r2": frontier.r2, "r2_all": frontier.r2_all, "rows": frontier.above}
            for space, frontier in tables.frontiers.items()
        },
        "movement": {
            line.name: [
                dict(zip(line.cells, seed, strict=True))
                for seed in zip(*line.cells.values(), strict=True)
            ]
            for line in tables.moved
        },
        "laws": [
            {"row": row, "space": space, "a": [fit.a, *fit.a_interval], "r2": fit.r2}
            for row, space, fit in figures.laws(results)
        ],
        "in_short": in_short(results),
        "verdict": verdict(results),
        "selection": results.selection,
        "curves": {
            name: {run.seed: dict(sorted(run.evaluations.items())) for run in runs}
            for name, runs in results.runs.items()
        },
    }
