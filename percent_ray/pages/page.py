"""HTML out of a jinja template that extends `base.html.jinja`: one file, nothing to fetch."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from percent_ray.pages import charts

HERE = Path(__file__).parent
TYPES = {"png": "image/png", "jpg": "image/jpeg", "svg": "image/svg+xml"}


def render(template: Path, **values: Any) -> str:
    """The page. A template may `{% extends "base.html.jinja" %}` and take macros from
    `parts.html.jinja`, which says how. Whatever is shown is escaped; a name that is not among
    `values`, which may be functions too, is an error."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader([template.parent, HERE]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {"svg": charts.svg, "swatch": charts.swatch, "numbers": charts.numbers}
    environment.globals.update(embed=embed, show=show, **drawn)
    return environment.get_template(template.name).render(**values)


def embed(content: Path | bytes, kind: str = "png") -> str:
    """A picture as a data URI. A file's name says its kind, one of `TYPES`; bytes need `kind`."""
    if isinstance(content, Path):
        content, kind = content.read_bytes(), content.suffix[1:]
    return f"data:{TYPES[kind]};base64,{base64.b64encode(content).decode()}"


def show(value: float, form: str = "") -> str:
    """A number by Python's format; without one it has about four digits."""
    return f"{value:{form or ('.3f' if abs(value) < 10 else '.1f')}}"
