"""The report of an evaluation: one self-contained HTML page, the same numbers as JSON and CSV, a
picture of every row's pictures, and a copy of all of it in MLflow."""

import io
from collections.abc import Sequence
from pathlib import Path

from percent_ray.evaluation import tables
from percent_ray.evaluation.results import FILE, Results, dump
from percent_ray.evaluation.store import SHOWN, Store
from percent_ray.monitor.terminal import ui_command
from percent_ray.monitor.tracking import Tracker
from percent_ray.pages.page import render

PAGE = "evaluation.html"
ON_PAGE = 4
"""Prompts whose pictures are on the page; grids have `SHOWN`."""
EXPERIMENT = "percent_ray"


def write(results: Results, store: Store, command: str) -> list[str]:
    """Write everything into the evaluation's folder; a line for each row and each file.

    `command` is what makes it anew.
    """
    folder = store.folder
    (folder / FILE).write_text(dump(results), encoding="utf-8")
    files = [FILE, "table.csv"]
    tables.write_csv(results.table, folder / "table.csv")
    for kind, found in (("tasks", results.tasks), ("failures", results.failures)):
        for judge, table in found.items():
            tables.write_csv(table, folder / f"{kind}_{judge}.csv")
            files.append(f"{kind}_{judge}.csv")
    grids(results, store)
    page = render(
        Path(__file__).parent / "page.html.jinja",
        results=results,
        evaluation=results.plan.evaluation,
        prompts=results.plan.prompts,
        labels=[row.label for row in results.rows],
        strips=_strips(results, store),
        command=command,
        column=column,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    uri = track(results, folder, [*files, PAGE])
    return [
        *lines(results),
        "",
        f"page     {folder / PAGE}",
        f"numbers  {', '.join(str(folder / name) for name in files)}",
        f"pictures {folder / 'grids'}",
        f"MLflow   {ui_command(uri)}",
    ]


def column(name: str) -> str:
    """A column's head: `quality/clip` is the judge alone."""
    return name.removeprefix("quality/")


def lines(results: Results) -> list[str]:
    """The main table for a terminal: a line for each row, with half of each interval's width."""
    heads = [column(name) for name in results.table.columns]
    rows = [["", *heads, *tables.AVERAGES]]
    for row in results.rows:
        averages = results.table.averages.get(row.label, {})
        cells = [_cell(row, name) for name in results.table.columns]
        rows.append(
            [
                row.label,
                *cells,
                *(f"{averages[a]:.3f}" if averages else "-" for a in tables.AVERAGES),
            ]
        )
    # A line for each column, so that many judges fit a terminal: rows of the table are its columns.
    turned = [list(line) for line in zip(*rows, strict=True)]
    widths = [max(len(line[i]) for line in turned) for i in range(len(turned[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in turned
    ]


def _cell(row: tables.Measured, name: str) -> str:
    found = row.means.get(name)
    if found is None:
        return "-"
    half = (
        "" if found.low is None or found.high is None else f" ±{(found.high - found.low) / 2:.2g}"
    )
    against = row.against.get(name)
    sure = against is not None and against.p is not None and against.p < 0.05
    return f"{found.mean:.4g}{half}{' *' if sure else ''}"


def grids(results: Results, store: Store) -> None:
    """A file for each of the first prompts: every row's pictures from the same noise."""
    from PIL import Image, ImageDraw

    folder = store.folder / "grids"
    folder.mkdir(exist_ok=True)
    head = 16  # pixels of a line of text
    for number, prompt in enumerate(results.plan.prompts[:SHOWN]):
        strips = [
            (row.label, Image.open(path))
            for row in results.plan.rows
            if (path := store.row(row.name).strip(number)).is_file()
        ]
        if not strips:
            continue
        width = max(400, *(strip.width for _, strip in strips))
        sheet = Image.new(
            "RGB", (width, head + sum(s.height + head + 4 for _, s in strips)), "white"
        )
        draw = ImageDraw.Draw(sheet)
        draw.text((2, 1), prompt.text[:120], fill="black")
        y = head
        for label, strip in strips:
            draw.text((2, y + 1), label, fill="#555555")
            sheet.paste(strip, (0, y + head))
            y += strip.height + head + 4
        sheet.save(folder / f"{number:05d}.png")


def _strips(results: Results, store: Store) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """For the page: by prompt, each row's label and pictures as a JPEG."""
    from PIL import Image

    found: list[tuple[str, list[tuple[str, bytes]]]] = []
    for number, prompt in enumerate(results.plan.prompts[:ON_PAGE]):
        rows: list[tuple[str, bytes]] = []
        for row in results.plan.rows:
            if (path := store.row(row.name).strip(number)).is_file():
                file = io.BytesIO()
                Image.open(path).convert("RGB").save(file, "JPEG", quality=88)
                rows.append((row.label, file.getvalue()))
        found.append((prompt.text, rows))
    return found


def track(results: Results, folder: Path, files: Sequence[str]) -> str:
    """A copy of the numbers and files in MLflow, as a run of the folder's name: one however often
    it is measured. Returns MLflow's URI."""
    evaluation, known = results.plan.evaluation, folder / "mlflow_run"
    tracker = Tracker(
        folder,
        tracking_uri=evaluation.tracking_uri,
        experiment=EXPERIMENT,
        run_name=folder.name,
        run_id=known.read_text(encoding="utf-8") if known.is_file() else None,
    )
    tracker.params({"prompts": evaluation.prompts, "images": evaluation.images})
    tracker.params({"rows": ", ".join(row.label for row in results.rows)})
    names = {row.label: row.name for row in results.plan.rows}
    means = {
        f"{names[row.label]}/{name}": found.mean
        for row in results.rows
        for name, found in row.means.items()
    }
    tracker.metrics(0, means)
    for name in files:
        tracker.file(folder / name, "report")
    tracker.file(folder / "grids", "grids")
    tracker.close()
    if tracker.run_id:
        known.write_text(tracker.run_id, encoding="utf-8")
    return tracker.uri
