from dataclasses import replace

import numpy as np
import pytest

from percent_ray.comparison import report, results, tables, verdict
from tests.comparison import fabricated


def test_the_interval_of_a_difference_is_welchs():
    from scipy.stats import t

    a, b = [0.9, 0.8, 0.85], [0.5, 0.6]
    sa, sb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 2
    free = (sa + sb) ** 2 / (sa**2 / 2 + sb**2)
    half = t.ppf(0.975, free) * np.sqrt(sa + sb)
    expected = np.mean(a) - np.mean(b)
    assert verdict.interval(a, b) == pytest.approx((expected - half, expected + half))
    assert verdict.interval(a, [0.5]) is None
    assert verdict.interval([0.5, 0.5], [0.4, 0.4]) is None


def test_in_short_tells_one_seed_and_a_space_that_was_trained_on(tmp_path):
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    read = results.read(plan)
    first = replace(
        read,
        runs={name: runs[:1] for name, runs in read.runs.items()},
        trained_on={**read.trained_on, "ours": frozenset({"clip"})},
    )
    *_, sure = verdict.in_short(first)
    assert sure.startswith("How sure: nothing was compared"), "one of two seeds has been run"
    one = replace(first, comparison=read.comparison.model_copy(update={"seeds": (1,)}))
    _, clip, dino, sure = verdict.in_short(one)
    assert (
        "marginal, which was trained on that space (of those that were not, PEC keeps most, 66%), "
        "keeps 94% of the base" in clip
    )
    assert "trained on" not in dino
    assert "interval" not in clip
    assert sure.startswith("How sure: not at all, an interval needs two seeds of a method and")
    mixed = replace(read, runs={**read.runs, "ours": read.runs["ours"][:1]})
    _, clip, _, sure = verdict.in_short(mixed)
    assert "marginal" not in clip, "with one seed of two it is not the best of any"
    assert "1 of 2 methods do not get to that reward in every seed" in sure


def test_a_method_that_levels_off_is_compared_where_all_of_its_seeds_have_been(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(fabricated.LINES, "ours", (0.0067, 0.5))
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    read = results.read(plan)
    share = tables.reached(read, "ours")
    assert 0.6 < share < 0.7
    lines = {line.name: line for line in tables.matched(read, share)}
    assert len(lines["ours"].cells["vendi/clip"]) == 2
    assert len(next(iter(tables.matched(read, share + 0.01))).cells["vendi/clip"]) == 2
    less = {line.name: line for line in tables.matched(read, share + 0.01)}
    assert len(less["ours"].cells["vendi/clip"]) < 2, "a percent more is not reached by all"
    first, clip, *_ = verdict.verdict(read)
    assert first == (
        f"marginal: its seeds do not all get to 90% of the gain; compared at {share:.0%}"
    )
    short, *rest = read.runs["ours"]
    short = replace(short, evaluations={v: m for v, m in short.evaluations.items() if v <= 10})
    behind = replace(read, runs={**read.runs, "ours": [short, *rest]})
    assert tables.reached(behind, "ours") < share - 0.1, "the least seed counts"
    kept = np.mean(lines["ours"].cells["vendi/clip"])
    assert clip.startswith(f"marginal, clip space: keeps {kept:.0%} of the base's Vendi (yes, ")


def test_a_reference_that_gains_nothing_leaves_nothing_to_compare(tmp_path, monkeypatch):
    monkeypatch.setitem(fabricated.LINES, "flow_grpo", (-0.01, 4.0))
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    read = results.read(plan)
    cost, nothing = verdict.in_short(read)
    assert "moves pickscore from 0.200 to 0.190" in cost
    assert nothing == "It has gained none of that reward: nothing is compared at the same reward."
    assert verdict.verdict(read) == []
    assert verdict.named(read) is None
    numbers = tables.tabulate(read, results.read(plan, "s1"))
    assert numbers.matched == {}
    assert report.write(read, numbers, "x").is_file()
    assert report.write(read, replace(numbers, tasks=()), "x").is_file()


def test_what_was_made_in_another_way_is_left_out_and_named(tmp_path):
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    assert results.strangers(plan) == []
    images = fabricated.load(tmp_path, ["--run.steps", "10"])
    assert max(results.read(images).runs["pec"][0].evaluations) == 10, "and no later checkpoint"
    other = fabricated.load(tmp_path, rows=["flow_grpo", "pec"])
    recipe = other.recipe("pec", 2)
    path = results.folder_of(recipe) / "recipe.yaml"
    path.write_text(path.read_text().replace("max_grad_norm: 1.0", "max_grad_norm: 2.0"))
    assert [run.seed for run in results.read(other).runs["pec"]] == [1]
    [line] = results.strangers(other)
    assert line.startswith("1 runs in ")
    assert line.endswith("were trained or judged in another way and are left out: pec-2")


@pytest.mark.parametrize("change", ["prompts", "model"])
def test_the_base_of_another_model_or_of_other_prompts_is_judged_anew(tmp_path, change):
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    assert results.is_base_judged(plan)
    options = ["--model.guidance", "2.5"] if change == "model" else []
    other = fabricated.load(tmp_path, options)
    if change == "prompts":
        path = tmp_path / "prompts.jsonl"
        path.write_text(path.read_text().replace("a red circle", "a green circle"))
    assert not results.is_base_judged(other)
    with pytest.raises(ValueError, match="what is there was judged in another way"):
        results.read(other)
