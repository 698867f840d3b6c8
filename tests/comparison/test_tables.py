"""Which tables a comparison has."""

from dataclasses import replace

import pytest

from percent_ray.comparison import report, results, tables
from tests.comparison import fabricated


def test_a_reward_with_tasks_has_its_table_of_them_from_the_rows_of_table_1(tmp_path):
    """No row of its own is asked for: all of them were trained on GenEval's rules."""
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    read = results.read(plan)
    judged = read.comparison.evaluation.model_copy(update={"judges": ("geneval", "pickscore")})
    read = replace(read, comparison=read.comparison.model_copy(update={"evaluation": judged}))
    numbers = tables.tabulate(read, replace(read, runs={}))
    assert [line.name for line in numbers.tasks] == ["base", *fabricated.ROWS]
    assert "geneval/counting" in numbers.tasks[1].cells
    plain = results.read(plan)
    assert not tables.tabulate(plain, replace(plain, runs={})).tasks


def test_a_part_of_the_runs_makes_a_report_too(tmp_path):
    plan = fabricated.load(tmp_path)
    with pytest.raises(ValueError, match="no results in"):
        results.read(plan)
    fabricated.finish(fabricated.load(tmp_path, rows=["flow_grpo"]))
    read = results.read(plan)
    assert list(read.runs) == ["flow_grpo"]
    numbers = tables.tabulate(read, results.read(plan, "s1"))
    assert report.write(read, numbers, "x").is_file()
