import numpy as np
import pytest
from jinja2 import UndefinedError

from percent_ray.pages.charts import Chart, Line, Panel
from percent_ray.pages.page import embed, render, show
from tests.browser import WIDTHS, assert_readable, opened

TEMPLATE = """\
{% extends "base.html.jinja" %}
{% from "parts.html.jinja" import chart, head, wide %}
{% block title %}{{ title }}{% endblock %}
{% block body %}
<h1>{{ title }}</h1>
{{ chart(figure) }}
{% call wide("sizes") %}
<table id="t"><thead><tr>
{{ head("name") }}{% for i in range(40) %}{{ head("column/%d" % i) }}{% endfor %}
</tr></thead><tbody>
{% for n in (2, 10, none, 1) %}
<tr><td>row {{ n }}</td>
{% for i in range(40) %}
<td{% if n is not none %} data-value="{{ n }}"{% endif %}>{{ show(n or 0) }}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endcall %}
{% endblock %}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html.jinja"
    path.write_text(TEMPLATE)
    return path


def figure():
    steps = np.arange(5.0)
    panels = [Panel(t, [Line(n, steps, steps) for n in ("<a>", "b")]) for t in ("reward", "H")]
    return Chart("A figure", "Both lines rise.", panels)


@pytest.fixture(scope="module")
def page(template):
    path = template.with_name("page.html")
    path.write_text(render(template, title="A <page>", figure=figure()))
    return path


def test_whatever_is_shown_is_escaped(page):
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "<h1>A &lt;page&gt;</h1>" in text
    assert "<a>" not in text


def test_a_page_fetches_nothing(page):
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    assert text.count("data:image/svg+xml") == 4, "two panels and two pieces of line for the key"


def test_a_name_that_has_no_value_is_an_error(template):
    with pytest.raises(UndefinedError, match="title"):
        render(template, figure=figure())


def test_a_picture_is_embedded_by_the_suffix_of_its_file(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"abc")
    assert embed(path) == "data:image/jpeg;base64,YWJj"
    assert embed(b"abc") == "data:image/png;base64,YWJj"


def test_a_number_has_about_four_digits():
    assert [show(0.12345), show(123.456), show(0.5, ".0%")] == ["0.123", "123.5", "50%"]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_wide_table_scrolls_in_its_own_box_under_a_first_column_that_stays(browser, page, width):
    with opened(browser, page, width) as shown:
        assert_readable(shown)
        box = shown.locator(".wide", has=shown.locator("#t"))
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        box.evaluate("box => box.scrollLeft = 500")
        first = shown.locator("#t tbody tr").first.locator("td").first
        assert first.bounding_box()["x"] == pytest.approx(box.bounding_box()["x"], abs=2)


def test_panels_stand_side_by_side_on_a_desktop_and_fill_a_phone(browser, page):
    boxes = {}
    for name, width in WIDTHS.items():
        with opened(browser, page, width) as shown:
            images = shown.locator(".panel > img")
            boxes[name] = [images.nth(n).bounding_box() for n in (0, 1)]
    assert boxes["desktop"][0]["y"] == boxes["desktop"][1]["y"]
    assert boxes["phone"][0]["y"] < boxes["phone"][1]["y"]
    assert boxes["phone"][0]["width"] > 340


def test_a_click_on_a_head_sorts_and_rows_without_a_value_come_last(browser, page):
    with opened(browser, page, 1280) as shown:
        rows = shown.locator("#t tbody tr")
        button = shown.locator("#t th button").nth(1)
        seen = []
        for _ in range(2):
            button.click()
            seen.append([text.split()[1] for text in rows.all_inner_texts()])
        assert seen == [["10", "2", "1", "None"], ["1", "2", "10", "None"]]
