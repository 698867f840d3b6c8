from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from percent_ray.pages import charts
from percent_ray.pages.charts import Chart, Line, Panel
from percent_ray.pages.style import COLOURS, Look, look


def line(label, x, y, **settings):
    return Line(label, np.array(x, float), np.array(y, float), **settings)


def test_the_first_280_lines_differ_and_neighbours_in_colour_dashes_and_marker():
    looks = [look(number) for number in range(280)]
    assert len(set(looks)) == 280
    for one, other in pairwise(looks):
        assert one.colour != other.colour
        assert one.dashes != other.dashes
        assert one.marker != other.marker


def test_the_table_has_a_column_for_each_line_where_they_share_their_x():
    panel = Panel("reward", [line("a", [0, 2, 4], [1, 2, 3]), line("b", [2, 4], [5, 6])])
    table = charts.numbers(panel)
    assert table.head == ["step", "a", "b"]
    assert table.rows == [[0, 1, None], [2, 2, 5], [4, 3, 6]]
    assert table.whole == 3


def test_the_table_has_a_row_for_each_point_where_lines_share_no_x():
    lines = [line("a", [0.1, 0.2], [1, 2]), line("b", [0.3, 0.4], [5, 6])]
    table = charts.numbers(Panel("Vendi", lines, xlabel="reward"))
    assert table.head == ["line", "reward", "Vendi"]
    assert table.rows == [["a", 0.1, 1], ["a", 0.2, 2], ["b", 0.3, 5], ["b", 0.4, 6]]


def test_a_long_table_keeps_both_ends_and_says_how_many_rows_there_were():
    steps = np.arange(1000)
    table = charts.numbers(Panel("reward", [line("a", steps, steps)]))
    assert (len(table.rows), table.whole) == (charts.ROWS, 1000)
    assert (table.rows[0][0], table.rows[-1][0]) == (0, 999)


def test_a_chart_has_one_key_where_its_panels_share_their_lines():
    one, other = (Panel(t, [line("a", [0], [0]), line("b", [0], [0])]) for t in ("x", "y"))
    assert [label for label, _ in Chart("", "", [one, other]).key] == ["a", "b"]
    third = Panel("z", [line("a", [0], [0]), line("c", [0], [0], in_key=False)])
    assert Chart("", "", [one, third]).key == ()
    assert [label for label, _ in third.key] == ["a"]


def drawn(panel):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    charts._draw(axes, panel)
    return axes


def test_noise_about_a_constant_does_not_fill_a_panel():
    flat = [line("a", [0, 1], [0.84, 0.841])]
    low, high = drawn(Panel("H", flat, least_height=0.1)).get_ylim()
    assert high - low == pytest.approx(0.1)
    low, high = drawn(Panel("H", flat)).get_ylim()
    assert high - low < 0.01


def test_a_shade_lies_between_low_and_high():
    low, high = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    axes = drawn(Panel("R", [line("a", [0, 1], [2, 3], low=low, high=high)]))
    [shade] = axes.collections
    corners = shade.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (1.0, 5.0)


def test_the_same_panel_is_the_same_picture_byte_for_byte():
    panel = Panel("reward", [line("a", [0, 1], [1, 2])])
    assert charts.svg(panel) == charts.svg(panel)
    assert charts.svg(panel).startswith(b"<?xml")


def test_a_png_has_every_panel_and_the_colours_of_its_lines(tmp_path):
    panels = [Panel(str(n), [line("a", [0, 1], [1, 2]), line("b", [0, 1], [2, 1])]) for n in (0, 1)]
    sizes = {}
    for columns in (1, 2):
        path = tmp_path / f"{columns}.png"
        charts.png(Chart("", "", panels), path, columns=columns)
        with Image.open(path) as image:
            sizes[columns] = image.size
            found = set(image.convert("RGB").get_flattened_data())
        assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= found
    assert sizes[1][0] < sizes[2][0]
    assert sizes[1][1] > sizes[2][1]


@pytest.mark.parametrize("columns", [1, 3])
def test_a_long_key_of_a_png_lies_within_it(tmp_path, columns):
    lines = [
        line(f"{n}: NFT + marginal PEC (DINO + CLIP) 0.8, shuffled", [0], [n]) for n in range(8)
    ]
    charts.png(Chart("", "", [Panel("", lines)] * 3), tmp_path / "long.png", columns=columns)
    with Image.open(tmp_path / "long.png") as image:
        edges = np.asarray(image.convert("L"))[:, [0, 1, -2, -1]]
    assert (edges == 255).all()


def test_a_swatch_is_of_its_look():
    assert b"#d55e00" in charts.swatch(Look("#d55e00"))


def test_the_probes_of_a_long_run_are_not_lost_among_its_steps():
    steps, probes = np.arange(1000), np.arange(0, 1001, 50)
    lines = [line("as trained", steps, steps), line("probes", probes, probes)]
    table = charts.numbers(Panel("reward", lines))
    assert len(table.rows) <= charts.ROWS
    assert [row[0] for row in table.rows if row[2] is not None] == [*probes]


def test_a_point_beside_another_of_the_same_x_is_in_the_table():
    """Two checkpoints of one reward."""
    points = line("a", [0.2, 0.3, 0.3, 0.4], [8, 7, 6, 5])
    table = charts.numbers(Panel("Vendi", [points], xlabel="reward"))
    assert [row[2] for row in table.rows] == [8, 7, 6, 5]
