import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from percent_ray.comparison import figures, report, results, tables, verdict
from percent_ray.evaluation.aggregate import normalized_average
from percent_ray.metrics import POLICY_ENTROPY
from tests.browser import WIDTHS, assert_readable, opened
from tests.comparison import fabricated


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    plan = fabricated.load(tmp_path_factory.mktemp("comparison"))
    fabricated.finish(plan)
    return plan


@pytest.fixture(scope="module")
def written(plan):
    read = results.read(plan)
    command = "python jobs/compare.py <x>"
    return report.write(read, tables.tabulate(read, results.read(plan, "s1")), command)


def test_table_1_has_the_base_first_and_averages_over_its_own_rows(plan):
    read = results.read(plan)
    lines = tables.table_1(read)
    assert [line.name for line in lines] == ["base", *fabricated.ROWS]
    quality = [[np.mean(line.cells[c]) for c in read.quality] for line in lines]
    averages = [line.cells["quality average"][0] for line in lines]
    np.testing.assert_allclose(averages, normalized_average(quality))
    for line in lines:
        expected = (line.cells["quality average"][0] + line.cells["diversity average"][0]) / 2
        assert line.cells["overall"] == [pytest.approx(expected)]
    assert lines[1].cells["vendi/dino"] == [pytest.approx(8.0 - 4.0 - 0.02 * s) for s in (1, 2)]
    assert read.diversity == [
        *("variance/clip", "variance/dino"),
        *("vendi/clip", "vendi/dino", "vendi/pickscore", "vendi/vae"),
    ]


def by_name(read, share):
    return {line.name: line for line in tables.matched(read, share)}


def test_matched_reward_is_read_where_a_training_first_gets_there(plan):
    read = results.read(plan)
    assert tables.level(read, 0.9) == pytest.approx(0.209)
    lines = by_name(read, 0.9)
    kept = lines["flow_grpo"].cells["vendi/dino"]
    assert kept == [pytest.approx((8 - 0.9 * (4.0 + 0.02 * s)) / 8) for s in (1, 2)]
    assert (lines["slow"].cells[tables.THERE], lines["slow"].seeds) == ([0], 2)
    assert lines["slow"].cells["vendi/dino"] == []
    assert lines["ours"].cells[tables.GAIN] == [pytest.approx(0.95)] * 2


def test_matched_says_what_getting_there_has_taken(plan):
    """15 images and half a minute a step; a run without a metrics file has no clock."""
    read = results.read(plan)
    [run, _] = read.runs["flow_grpo"]
    images, seconds = run.spent()
    np.testing.assert_allclose(images, [0, 75, 150, 225, 300])
    np.testing.assert_allclose(seconds, [0, 150, 300, 450, 600])
    cells = by_name(read, 0.9)["flow_grpo"].cells
    assert cells["images"] == [pytest.approx(0.9 * 300)] * 2
    assert cells["minutes"] == [pytest.approx(0.9 * 10)] * 2
    assert by_name(read, 0.9)["slow"].cells["images"] == []
    torn = replace(run, steps={k: v for k, v in run.steps.items() if k != 7})
    assert [len(values) for values in torn.spent()] == [0, 0]


def test_early_stopping_is_the_best_reference_of_each_seed(plan):
    read = results.read(plan)
    lines = by_name(read, 0.3)
    fast, slow = (lines[name].cells["vendi/dino"] for name in ("flow_grpo", "slow"))
    assert slow[0] > fast[0]
    assert lines[tables.STOPPED].cells["vendi/dino"] == slow
    only = replace(read, runs={**read.runs, "slow": read.runs["slow"][:1]})
    assert by_name(only, 0.3)[tables.STOPPED].cells["vendi/dino"] == [slow[0], fast[1]]
    assert by_name(read, 0.9)[tables.STOPPED].cells == {
        **by_name(read, 0.9)["flow_grpo"].cells,
        **{tables.THERE: [], tables.GAIN: [], "images": [], "minutes": []},
    }


def test_choosing_among_the_bases_pictures_counts_from_the_base(plan):
    read = results.read(plan)
    rewards, values = tables.chosen(read, "vendi/dino")
    np.testing.assert_allclose(rewards, [0.2, 0.205, 0.21])
    np.testing.assert_allclose(values, [8.0, 8.0 * 5.5 / 6, 8.0 * 5 / 6])

    def left(read, share):
        return by_name(read, share)[tables.CHOSEN].cells["vendi/dino"]

    assert left(read, 0.5) == [pytest.approx(5.5 / 6)]
    assert left(read, 1.5) == [], "the pool has no such pictures"
    assert left(replace(read, selection=()), 0.5) == []


def test_what_is_kept_is_the_same_of_a_run_and_of_its_curve(plan):
    read = results.read(plan)
    [run, _] = read.runs["ours"]
    curve = run.judged(read.reward)[1], run.judged("vendi/clip")[1]
    kept = tables.kept(read, "vendi/clip", run, 0.205)
    assert kept == tables.kept(read, "vendi/clip", curve, 0.205)
    assert kept == pytest.approx((8 - 0.52 * 0.005 / 0.0095) / 8)
    assert tables.kept(read, "vendi/clip", run, 0.3) is None


def test_distance_from_the_frontier_is_at_the_same_reward(plan):
    """Rows whose Vendi falls in a line with reward; the reference's own line is the frontier."""
    read = results.read(plan)
    only = replace(read, runs={k: v for k, v in read.runs.items() if k != "slow"})
    frontier = tables.frontier(only, "vendi/dino")
    assert frontier.r2 > 0.999
    assert frontier.r2_all < 0.9, "the other rows lie elsewhere"
    assert frontier.above["flow_grpo"] == pytest.approx([0.0, 0.0], abs=2e-3)
    per_gain = {"pec": 3.0 / 0.010, "ours": 0.5 / 0.0095}
    for name, gained in (("pec", 0.010), ("ours", 0.0095)):
        # Four checkpoints, at a quarter of the gain to all of it.
        expected = 0.625 * gained * (4.03 / 0.010 - per_gain[name]) / 8
        assert np.mean(frontier.above[name]) == pytest.approx(expected, abs=5e-3)


def test_the_verdict_leaves_out_the_spaces_that_were_trained_on(plan):
    lines = verdict.verdict(results.read(plan))
    assert [line.split(":")[0] for line in lines] == [
        "marginal, clip space",
        "marginal, dino space",
        "marginal, vae space",
        "marginal, vae_centred space",
    ]
    assert all("(yes, asked 80%)" in line and "above it" in line for line in lines)
    assert not any("not above" in line for line in lines)


def test_one_seed_gets_no_verdict(plan):
    read = results.read(plan)
    first = replace(read, runs={name: runs[:1] for name, runs in read.runs.items()})
    assert verdict.verdict(first) == ["marginal: one seed, which has no spread; no verdict"]


def test_the_report_is_one_file_with_every_figure_and_its_numbers(plan, written):
    read, page = results.read(plan), written
    text = page.read_text()
    assert 'src="data:image/png;base64,' in text
    assert text.count("choosing among the base model") == 2
    assert "://" not in re.sub(r'"data:[^"]*"', "", text)
    assert "python jobs/compare.py &lt;x&gt;" in text
    with (page.parent / "table_1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["base", *fabricated.ROWS]
    assert float(rows[0]["vendi/dino mean"]) == 8.0
    with (page.parent / "table_s1.csv").open() as file:
        tasks = list(csv.DictReader(file))
    assert [row["row"] for row in tasks] == ["base", "geneval"]
    assert float(tasks[1]["geneval/counting mean"]) == pytest.approx(3 * 0.202)
    assert "geneval" not in read.runs
    numbers = json.loads((page.parent / "results.json").read_text())
    assert len(numbers["selection"]) == 3
    assert {fit["row"] for fit in numbers["laws"]} == {
        "Flow-GRPO",
        "Flow-GRPO, slow",
        "PEC",
        "marginal",
    }
    assert numbers["movement"]["pec"][0] == {"size": 0.0, "shared": 0.0, "of_prompt": 0.0}
    assert numbers["curves"]["pec"]["1"]["20"]["quality/pickscore"] == pytest.approx(0.21)
    drawn = sorted(path.stem for path in (page.parent / "figures").glob("*.png"))
    assert drawn == sorted(
        [
            "frontier",
            "samples",
            "spending",
            *(f"figure_{name}" for name in ("2", "4", "5", "6", "7", "s4")),
        ]
    )


class Page(HTMLParser):
    """The rows of every table as a reader sees them, by the heading above it, and what comes in
    which order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.order: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside = self._inside if tag == "button" else tag
        if tag == "h2":
            self.order.append("")
        elif tag == "tr":
            self.tables.setdefault(self.order[-1], []).append([])
        elif tag in ("th", "td"):
            self.tables[self.order[-1]][-1].append("")

    def handle_endtag(self, tag):
        if tag != "button":
            self._inside = "tr" if tag in ("th", "td") else ""

    def handle_data(self, data):
        if self._inside == "h2":
            self.order[-1] += data
        elif self._inside in ("th", "td", "small") and self.tables:
            self.tables[self.order[-1]][-1][-1] += data.replace("\u200b", "")


def rendered(read, plan) -> str:
    numbers = tables.tabulate(read, results.read(plan, "s1"))
    return report.page(read, numbers, "x")


def test_the_page_shows_the_numbers_of_the_tables(plan):
    page = Page(rendered(results.read(plan), plan))
    head, base, reference, *_ = page.tables["Table 1: the last checkpoint"]
    assert head[:3] == ["method seeds", "pickscore cosine", "clip cosine"]
    assert base[:2] == ["base model 1", "0.200"]
    dino = head.index("vendi/dino")
    assert (base[dino], reference[dino]) == ("8.000", "3.970 ±0.014")
    *rows, stopped, chosen = page.tables["At the same reward: 90% of the reference's gain"]
    assert [*rows[1][:3], rows[1][4]] == ["Flow-GRPO 2", "2", "100% ±0%", "55% ±0%"]
    assert rows[2] == ["Flow-GRPO, slow 2", "0", "40% ±0%", *["-"] * 7]
    assert rows[1][-2:] == ["270 ±0", "9.0 ±0.0"]
    assert stopped[3:] == [*["55% to 55%"] * 5, "-", "-"]
    assert chosen[3:] == [*["85%"] * 5, "-", "-"]
    head, *rows = page.tables["Above the frontier"]
    assert head[1] == "vendi/clip R² 0.98, of all rows 0.47"
    assert rows[3][1] == "+23.8% ±0.1%"
    head, row, *_ = page.tables["Where the pictures went"]
    assert row == ["Flow-GRPO 2", "0.000 ±0.000", "0% ±0%", "0% ±0%"]


def test_pictures_and_the_frontier_come_before_the_tables(written):
    order = Page(written.read_text()).order
    assert [title.partition(":")[0] for title in order[:3]] == ["Pictures", "Frontier", "Table 1"]
    assert order[-1].startswith("Figure S4")
    assert len(order) == len(set(order))


def test_a_label_cannot_break_the_page(plan):
    read = results.read(plan)
    label = '<script>alert(1)</script> & "x"'
    rows = {n: r.model_copy(update={"label": label}) for n, r in read.comparison.rows.items()}
    named = replace(read, comparison=read.comparison.model_copy(update={"rows": rows}))
    text = rendered(named, plan)
    assert text.count("<script>") == 1, "the page's own"
    page = Page(text)
    for title in ("Table 1: the last checkpoint", "Above the frontier", "Where the pictures went"):
        assert page.tables[title][-1][0] == f"{label} 2"
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;x&#34;, clip space" in text


def lines_of(chart):
    """What a figure draws: by panel and label its line."""
    return [{line.label: line for line in panel.lines} for panel in chart.panels]


def test_figure_2_has_the_measured_entropy_beside_the_schedules(plan):
    read = results.read(plan)
    entropy, variance = lines_of(figures.figure_2(read))
    measured = [0.84 + 0.01 * np.sin(step) for step in range(21)]
    np.testing.assert_allclose(entropy["measured, as trained"].y, measured)
    np.testing.assert_allclose(entropy["schedule"].y, 0.84)
    assert entropy["schedule"].look.dashes != entropy["measured, as trained"].look.dashes
    assert figures.figure_2(read).panels[0].least_height == 0.1, "noise looks like noise"
    assert list(variance) == ["VAE latents", "pixels", "clip", "dino", "pickscore, the reward's"]
    np.testing.assert_allclose(variance["VAE latents"].y[[0, 20]], [1.0, 0.5])
    first, *_ = lines_of(figures.figure_s4(read))
    np.testing.assert_allclose(first["PEC, as trained"].y, measured)


def test_an_older_run_without_the_schedules_entropy_has_no_dashed_line(plan):
    read = results.read(plan)
    older = [
        replace(run, steps={s: {POLICY_ENTROPY: m[POLICY_ENTROPY]} for s, m in run.steps.items()})
        for run in read.runs["flow_grpo"]
    ]
    changed = replace(read, runs={**read.runs, "flow_grpo": older})
    [entropy] = lines_of(figures.figure_2(changed))
    assert list(entropy) == ["measured, as trained"]


def test_a_figure_of_what_was_not_measured_is_not_drawn(plan):
    read = results.read(plan)
    bare = {
        name: [replace(run, steps={}) for run in runs if run.seed == 1]
        for name, runs in read.runs.items()
    }
    assert list(figures.draw(replace(read, runs=bare))) == ["frontier", "figure_6"]


def test_the_frontier_goes_from_the_base_over_reward(plan):
    read = results.read(plan)
    [clip, *_] = lines_of(figures.frontier(read))
    labels = [read.rows[name].label for name in fabricated.ROWS]
    assert list(clip) == [*labels, "base model", "choosing among the base's pictures"]
    np.testing.assert_allclose(clip["PEC"].x, [0.2, 0.2025, 0.205, 0.2075, 0.21])
    np.testing.assert_allclose(clip["PEC"].y[[0, -1]], [8.0, 8 - 3.03])
    assert clip["PEC"].look.width < clip["Flow-GRPO"].look.width


def test_figure_6_has_rows_of_the_rewards_space_after_the_reference(plan):
    [reward, *_] = lines_of(figures.figure_6(results.read(plan)))
    assert list(reward) == ["Flow-GRPO", "PEC"]
    np.testing.assert_array_equal(reward["PEC"].x, [0, 5, 10, 15, 20])


def test_in_short_says_who_kept_what_at_which_reward_and_how_sure_that_is(plan):
    cost, clip, dino, sure = verdict.in_short(results.read(plan))
    assert cost == (
        "Trained for reward alone, Flow-GRPO moves pickscore from 0.200 to 0.210 (cosine); of 4 "
        "pictures of a prompt, 8.0 counted as different before (vendi/clip) and 4.0 do at its end."
    )
    # 8 - 0.52 x .009/.0095 and 8 - 0.54 x .009/.0095 of 8, against 8 - .9 x 4.02 and - .9 x 4.04.
    assert clip == (
        "At the same reward, 90% of that gain, in the clip space: marginal keeps 94% (seeds 94% to "
        "94%) of the base model's vendi/clip, more than the best reference stopped there, 55% "
        "(seeds 55% to 55%) (difference +39%; 95% interval +38% to +40%)."
    )
    assert dino.startswith(
        "At the same reward, 90% of that gain, in the dino space: marginal keeps"
    )
    assert sure == (
        "How sure: the interval over seeds lies above 0 in 2 of 2 spaces. The best of 2 methods "
        "was picked, which flatters it."
    )


def test_in_short_tells_where_no_method_gets_there_or_none_keeps_more(plan):
    read = results.read(plan)
    references = {n: r for n, r in read.runs.items() if n in ("flow_grpo", "slow")}
    nobody = verdict.in_short(replace(read, runs=references))
    assert "so none can be compared" in nobody[1]
    assert nobody[3] == "How sure: nothing was compared."
    worse = {**references, "pec": [replace(r, row="pec") for r in read.runs["flow_grpo"]]}
    told = verdict.in_short(replace(read, runs=worse))
    assert "no other method more; not more than the best reference stopped there" in told[1]
    assert "lies above 0 in 0 of 2 spaces" in told[3]


def test_in_short_leaves_out_a_method_with_a_seed_that_does_not_get_there(plan):
    read = results.read(plan)
    first, second = read.runs["ours"]
    late = replace(second, evaluations={v: n for v, n in second.evaluations.items() if v <= 10})
    changed = replace(read, runs={**read.runs, "ours": [first, late]})
    assert verdict.named(changed) == "pec"
    assert "1 of 2 methods do not get to that reward in every seed" in verdict.in_short(changed)[3]


def test_pictures_are_of_base_reference_and_the_row_that_the_verdict_names(plan):
    read = results.read(plan)
    assert verdict.named(read) == "ours"
    shown = figures.samples(read)
    assert [text for text, _ in shown] == ["a red circle", "a blue square"]
    assert [label for label, _ in shown[0][1]] == ["base model", "Flow-GRPO", "marginal"]
    less = {n: runs for n, runs in read.runs.items() if n != "ours"}
    [_, (_, sets)] = figures.samples(replace(read, runs=less))
    assert [label for label, _ in sets] == ["base model", "Flow-GRPO", "PEC"]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_is_readable_and_table_1_is_whole_on_a_desktop(browser, written, width):
    with opened(browser, written, width) as page:
        assert_readable(page)
        box = page.get_by_role("region", name="table 1", exact=True)
        cut = box.evaluate("box => box.scrollWidth > box.clientWidth")
        assert cut == (width < 600)
        headings = page.locator("h2").all_inner_texts()
        assert headings[0].startswith("Pictures")
        assert page.locator(".film").first.bounding_box()["y"] < 1400
        for image in page.locator(".panel > img").all():
            assert image.bounding_box()["width"] > 290
        keys = page.locator("figure.chart .key")
        assert keys.count() > 0
