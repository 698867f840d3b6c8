import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from percent_ray.comparison import report, results, tables
from percent_ray.evaluation.aggregate import normalized_average
from tests.comparison import fabricated


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    plan = fabricated.load(tmp_path_factory.mktemp("comparison"))
    fabricated.finish(plan)
    return plan


def test_table_1_has_the_base_first_and_averages_over_its_own_rows(plan):
    found = results.read(plan)
    lines = tables.table_1(found)
    assert [line.name for line in lines] == ["base", *fabricated.ROWS]
    quality = [[line.cells[c][0] for c in found.quality] for line in lines]
    averages = [line.cells["quality average"][0] for line in lines]
    np.testing.assert_allclose(averages, normalized_average(quality))
    for line in lines:
        expected = (line.cells["quality average"][0] + line.cells["diversity average"][0]) / 2
        assert line.cells["overall"][0] == pytest.approx(expected)
    mean, std = lines[1].cells["vendi/dino"]
    assert mean == pytest.approx(8.0 - 4.0 - 0.03)
    assert std == pytest.approx(0.02 / np.sqrt(2))
    assert found.diversity == [
        *("variance/clip", "variance/dino"),
        *("vendi/clip", "vendi/dino", "vendi/pickscore", "vendi/vae"),
    ]


def test_matched_reward_is_read_where_a_training_first_gets_there(plan):
    found = results.read(plan)
    assert tables.level(found, 0.9) == pytest.approx(0.209)
    by_name = {line.name: line for line in tables.matched(found, 0.9)}
    kept = by_name["flow_grpo"].kept["vendi/dino"]
    assert kept == [pytest.approx((8 - 0.9 * (4.0 + 0.02 * s)) / 8) for s in (1, 2)]
    assert (by_name["slow"].reached, by_name["slow"].seeds) == (0, 2)
    assert by_name["slow"].kept["vendi/dino"] == []
    assert by_name["ours"].gain[0] == pytest.approx(0.95)
    assert tables.early_stopping(found, "vendi/dino", 0.9) == {1: kept[0], 2: kept[1]}


def test_choosing_among_the_bases_pictures_counts_from_the_base(plan):
    found = results.read(plan)
    rewards, values = tables.chosen(found, "vendi/dino")
    np.testing.assert_allclose(rewards, [0.2, 0.205, 0.21])
    np.testing.assert_allclose(values, [8.0, 8.0 * 5.5 / 6, 8.0 * 5 / 6])
    assert tables.selected(found, "vendi/dino", 0.5) == pytest.approx(5.5 / 6)
    assert tables.selected(found, "vendi/dino", 1.5) is None, "the pool has no such pictures"
    assert tables.selected(replace(found, selection=()), "vendi/dino", 0.5) is None


def test_distance_from_the_frontier_is_at_the_same_reward(plan):
    """Rows whose Vendi falls in a line with reward; the reference's own line is the frontier."""
    found = results.read(plan)
    only = replace(found, runs={k: v for k, v in found.runs.items() if k != "slow"})
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
    lines = tables.verdict(results.read(plan))
    assert [line.split(":")[0] for line in lines] == [
        "marginal, clip space",
        "marginal, dino space",
        "marginal, vae space",
    ]
    assert all("(yes, asked 80%)" in line and "above it" in line for line in lines)
    assert not any("not above" in line for line in lines)


def test_one_seed_gets_no_verdict(plan):
    found = results.read(plan)
    first = replace(found, runs={name: runs[:1] for name, runs in found.runs.items()})
    assert tables.verdict(first) == ["marginal: one seed, which has no spread; no verdict"]


def test_the_report_is_one_file_with_every_figure_and_its_numbers(plan):
    found = results.read(plan)
    numbers = tables.tabulate(found, results.read(plan, "s1"))
    page = report.write(found, numbers, "python jobs/compare.py <x>")
    text = page.read_text()
    assert 'src="data:image/png;base64,' in text
    assert text.count("<img ") == 8
    assert text.count("choosing among the base model") == 2
    assert "http" not in text
    assert "python jobs/compare.py &lt;x&gt;" in text
    with (page.parent / "table_1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["base", *fabricated.ROWS]
    assert float(rows[0]["vendi/dino mean"]) == 8.0
    with (page.parent / "table_s1.csv").open() as file:
        tasks = list(csv.DictReader(file))
    assert [row["row"] for row in tasks] == ["base", "geneval"]
    assert float(tasks[1]["geneval/counting mean"]) == pytest.approx(3 * 0.202)
    assert "geneval" not in found.runs
    numbers = json.loads((page.parent / "results.json").read_text())
    assert len(numbers["selection"]) == 3
    assert numbers["movement"]["pec"][0] == {"size": 0.0, "shared": 0.0, "of_prompt": 0.0}
    assert numbers["curves"]["pec"]["1"]["20"]["quality/pickscore"] == pytest.approx(0.21)
    drawn = sorted(path.stem for path in (page.parent / "figures").glob("*.png"))
    assert drawn == sorted(
        ["frontier", "samples", *(f"figure_{name}" for name in ("2", "4", "5", "6", "7", "s4"))]
    )


def test_a_part_of_the_runs_makes_a_report_too(tmp_path):
    plan = fabricated.load(tmp_path)
    with pytest.raises(ValueError, match="no results in"):
        results.read(plan)
    fabricated.finish(fabricated.load(tmp_path, rows=["flow_grpo"]))
    found = results.read(plan)
    assert list(found.runs) == ["flow_grpo"]
    numbers = tables.tabulate(found, results.read(plan, "s1"))
    assert report.write(found, numbers, "x").is_file()
