"""A comparison as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from percent_ray.comparison.results import Results
from percent_ray.comparison.tables import (
    Frontier,
    Line,
    Matched,
    Tables,
    early_stopping,
    selected,
    spread,
)
from percent_ray.evaluation.aggregate import mean_and_std
from percent_ray.evaluation.movement import Movement

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2.2em}
table{border-collapse:collapse;font-size:13px}
th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{border-bottom:2px solid #888;cursor:pointer}
tr.base,tr.reference{background:#f3f3f3}tr.ours{background:#eef6ee}tr.control{color:#888}
td.best{font-weight:600}small{color:#777}img{max-width:100%}
.wide{overflow-x:auto}code{background:#f3f3f3;padding:.1em .3em}
"""
SCRIPT = """
for (const head of document.querySelectorAll('th')) head.onclick = () => {
  const table = head.closest('table'), column = [...head.parentNode.children].indexOf(head);
  const value = row => parseFloat(row.children[column].dataset.value ?? 'NaN');
  const rows = [...table.tBodies[0].rows];
  const down = head.dataset.down = head.dataset.down === '1' ? '0' : '1';
  rows.sort((a, b) => (isNaN(value(a)) - isNaN(value(b))) ||
    (down === '1' ? value(b) - value(a) : value(a) - value(b)));
  table.tBodies[0].append(...rows);
};
"""


def page(results: Results, tables: Tables, drawn: Mapping[str, Path], command: str) -> str:
    """The whole page; `drawn` are the figures' files by title, `command` is what makes it anew."""
    comparison = results.comparison
    protocol = comparison.evaluation
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{escape(comparison.name)}</title><style>{STYLE}</style>",
        f"<h1>{escape(comparison.name)}</h1>",
        f"<p>{len(results.runs)} methods, seeds {', '.join(map(str, comparison.seeds))}. Every "
        f"checkpoint is judged on {protocol.images} pictures of each prompt of "
        f"<code>{escape(Path(protocol.prompts).name)}</code>, fixed noise, {protocol.steps} ODE "
        f"steps. Mean ± standard deviation over seeds. Made by <code>{escape(command)}</code>.</p>",
        "<h2>Table 1: the last checkpoint</h2>",
        "<p>Norm. averages are min-max over these rows. Vendi: effective number of different "
        f"pictures among {protocol.images} of one prompt, mean over prompts. Click a column to "
        "sort.</p>",
        _lines_html(tables.lines, _columns(results)),
    ]
    for share, table in tables.matched.items():
        parts += [
            f"<h2>At the same reward: {share:.0%} of the reference's gain</h2>",
            "<p>Share of the base's Vendi that is left when a training first reaches that reward, "
            "linear between checkpoints; seeds that never reach it are not averaged. Choosing "
            "among the base's own pictures needs no training: what a method keeps less than that, "
            "its training has cost and not the reward.</p>",
            _matched_html(results, table, share),
        ]
    parts += [
        "<h2>Above the frontier</h2>",
        "<p>Vendi minus what the references (Flow-GRPO stopped anywhere, at any of its learning "
        "rates) have at the same reward, in points of the base's Vendi: mean over all checkpoints, "
        "± over seeds. Their own rows show the noise.</p>",
        _frontier_html(results, tables.frontiers),
        "<h2>Where the pictures went</h2>",
        "<p>The last checkpoint's pictures against the base model's from the same noise. Shared: "
        "how much of the movement is one and the same change of every picture of every prompt; "
        "of the prompt: the same for all pictures of a prompt.</p>",
        _movements_html(results, tables.movements),
        *("<h2>Verdict</h2><ul>", *(f"<li>{escape(v)}</li>" for v in tables.verdict), "</ul>"),
    ]
    if tables.tasks:
        parts += [
            "<h2>Table S1: trained on GenEval's rules, by task</h2>",
            "<p>Share of pictures that the official rules call right.</p>",
            _lines_html(tables.tasks, list(tables.tasks[0].cells)),
        ]
    for title, path in drawn.items():
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f"<h2>{escape(title)}</h2>"
            f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
        )
    return "\n".join([*parts, f"<script>{SCRIPT}</script></html>"])


def _columns(results: Results) -> list[str]:
    averages = ["quality average", "diversity average", "overall"]
    return [*results.quality, *results.diversity, *averages]


def _lines_html(lines: Sequence[Line], columns: Sequence[str]) -> str:
    best = {c: max(line.cells[c][0] for line in lines) for c in columns}
    head = "".join(f"<th>{escape(c.removeprefix('quality/'))}</th>" for c in columns)
    body: list[str] = []
    for line in lines:
        cells: list[str] = []
        for column in columns:
            mean, std = line.cells[column]
            spread = f" <small>±{_number(std)}</small>" if std else ""
            strong = ' class="best"' if mean == best[column] else ""
            cells.append(f'<td{strong} data-value="{mean}">{_number(mean)}{spread}</td>')
        label = f"{escape(line.label)} <small>{line.seeds}</small>"
        body.append(f'<tr class="{line.kind}"><td>{label}</td>{"".join(cells)}</tr>')
    return _html_table(f"<th>method <small>seeds</small></th>{head}", body)


def _matched_html(results: Results, table: Sequence[Matched], share: float) -> str:
    spaces = results.vendi
    head = "".join(f"<th>{escape(space)}</th>" for space in spaces)
    body: list[str] = []
    for line in table:
        shares = [line.gain, *(mean_and_std(v) if (v := line.kept[s]) else None for s in spaces)]
        body.append(
            f'<tr class="{line.kind}"><td>{escape(line.label)}</td>'
            f"<td>{line.reached}/{line.seeds}</td>{''.join(map(_share, shares))}</tr>"
        )
    stopped = [
        f"<td>{spread(list(early_stopping(results, space, share).values()))}</td>"
        for space in spaces
    ]
    body.append(
        '<tr class="reference"><td>early stopping at the best learning rate, by seed</td>'
        f"<td></td><td></td>{''.join(stopped)}</tr>"
    )
    choice = [_one(selected(results, space, share)) for space in spaces]
    body.append(
        '<tr class="base"><td>choosing among the base model\'s own pictures</td>'
        f"<td></td><td></td>{''.join(map(_share, choice))}</tr>"
    )
    return _html_table(f"<th>method</th><th>seeds there</th><th>last gain</th>{head}", body)


def _one(value: float | None) -> tuple[float, float] | None:
    return None if value is None else (value, 0.0)


def _frontier_html(results: Results, found: Mapping[str, Frontier]) -> str:
    head = "".join(
        f"<th>{escape(space)} <small>R² {f.r2:.2f}, of all rows {f.r2_all:.2f}</small></th>"
        for space, f in found.items()
    )
    body: list[str] = []
    for name, row in results.rows.items():
        cells = [mean_and_std(v) if (v := f.above.get(name)) else None for f in found.values()]
        points = "".join(_share(cell, "+.1%") for cell in cells)
        body.append(f'<tr class="{row.kind}"><td>{escape(row.label)}</td>{points}</tr>')
    return _html_table(f"<th>method</th>{head}", body)


def _movements_html(results: Results, found: Mapping[str, Sequence[Movement]]) -> str:
    body: list[str] = []
    for name, row in results.rows.items():
        cells = [
            mean_and_std([getattr(moved, field) for moved in found[name]])
            for field in ("size", "shared", "of_prompt")
        ]
        forms = (".3f", ".0%", ".0%")
        shares = "".join(_share(cell, form) for cell, form in zip(cells, forms, strict=True))
        body.append(f'<tr class="{row.kind}"><td>{escape(row.label)}</td>{shares}</tr>')
    head = "<th>method</th><th>squared change of a pixel</th><th>shared</th><th>of the prompt</th>"
    return _html_table(head, body)


def _share(cell: tuple[float, float] | None, form: str = ".0%") -> str:
    """A table's cell of a mean and its standard deviation."""
    if cell is None:
        return "<td>-</td>"
    mean, std = cell
    spread = f" <small>±{std:{form.lstrip('+')}}</small>" if std else ""
    return f'<td data-value="{mean}">{mean:{form}}{spread}</td>'


def _html_table(head: str, body: Sequence[str]) -> str:
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
