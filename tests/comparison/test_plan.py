from pathlib import Path

import pytest
import yaml

from jobs import compare
from percent_ray.comparison import plan as plans
from percent_ray.recipe.load import RecipeError
from tests.comparison import fabricated


def test_a_rows_recipe_is_base_then_rows_then_overrides(tmp_path):
    plan = plans.load(fabricated.build(tmp_path), ["--run.steps", "30"])
    recipe = plan.recipe("ours", 2)
    assert (recipe.method.name, recipe.run.seed, recipe.run.steps) == ("marginal_pec", 2, 30)
    assert recipe.run.name == "ours-2"
    assert Path(recipe.run.folder) == tmp_path / "out" / "compare" / "runs"
    assert plan.recipe("flow_grpo", 1).method.name == "flow_grpo"


def test_a_row_may_have_a_base_recipe_of_its_own(tmp_path):
    path = fabricated.build(tmp_path)
    other = yaml.safe_load((tmp_path / "base.yaml").read_text())
    other["learner"]["lr"] = 0.5
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    tree = yaml.safe_load(path.read_text())
    tree["rows"]["ours"]["base"] = "other.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    plan = plans.load(path)
    assert (plan.recipe("ours", 1).learner.lr, plan.recipe("pec", 1).learner.lr) == (0.5, 3e-4)
    tree["rows"]["ours"]["base"] = "gone.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(RecipeError, match=r"rows\.ours: .*gone\.yaml: no such file"):
        plans.load(path)


def test_quick_is_some_rows_and_one_seed_in_a_folder_of_its_own(tmp_path):
    comparison = fabricated.load(tmp_path, quick=True).comparison
    assert list(comparison.rows) == ["flow_grpo", "pec"]
    assert (comparison.seeds, comparison.name) == ((1,), "compare_quick")


def test_settings_replace_keys_and_rows_choose(tmp_path):
    rows = ["slow", "ours", "flow_grpo"]
    comparison = fabricated.load(tmp_path, rows=rows, seeds=[7], workers=None).comparison
    assert list(comparison.rows) == ["flow_grpo", "slow", "ours"]
    assert (comparison.seeds, comparison.workers) == ((7,), 2)


def test_rows_that_no_report_can_be_made_of_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(RecipeError, match="none of the rows is a reference of table 1"):
        fabricated.load(tmp_path, rows=["ours", "geneval"])
    with pytest.raises(RecipeError, match="have 2 checkpoints and a frontier needs 3"):
        plans.load(fabricated.build(tmp_path), ["--run.checkpoint_every", "10"], quick=True)


def changed(folder: Path, /, **keys) -> Path:
    path = fabricated.build(folder)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return path


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"quick": [], "rows": {"a": {"label": "A", "recipe": {"learner": {"lrr": 1}}}}},
            "rows.a: learner.lrr",
        ),
        ({"rows": {"a": {"labl": "A"}}}, "rows.a.label: missing"),
        ({"quick": ["pecc"]}, "no row pecc"),
        ({"base": "nowhere.yaml"}, "no such file"),
        ({"workers": 0}, "workers: got 0, needs at least 1"),
        (
            {"evaluation": {"images": 4, "judges": ["pickscore", "geneval", "hps"]}},
            "row flow_grpo: evaluation: hps not among scorers",
        ),
        ({"folder": ""}, "folder: got '', needs a text that is not empty"),
        ({"folder": "~nouser/x"}, "folder '~nouser/x': there is no such user"),
        ({"name": "n" * 300}, "name: got .*, needs at most 100 characters"),
        ({"rows": {"r" * 300: {"label": "A"}}, "quick": []}, "needs at most 80 characters"),
        ({"gpus": 1.5}, "gpus 1.5: above 1 whole cards are given; set it to 1, 2 or a part"),
        ({"gpus": 1e-300}, "gpus 1e-300: is no part of a card; set it to 0.0001 or more"),
        ({"gpus": 1e9}, "gpus: got 1000000000.0, needs at most 1024"),
        ({"pool": 3}, "pool 3 has fewer pictures than evaluation.images 4"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_row(tmp_path, keys, message):
    with pytest.raises(RecipeError, match=message) as caught:
        plans.load(changed(tmp_path, **keys))
    assert all("\n" not in problem for problem in caught.value.problems)


def test_gpus_are_a_part_of_a_card_or_whole_ones(tmp_path):
    for gpus in (0.0, 0.5, 1.0, 2.0):
        assert plans.load(changed(tmp_path, gpus=gpus)).comparison.gpus == gpus


def test_numbers_of_the_command_line_are_of_plain_digits():
    arguments, _ = compare.parse(["--seeds", "1, 10", "--workers", "3"])
    assert (arguments.seeds, arguments.workers) == ([1, 10], 3)
    for text in ("1_0", "\uff11", "1.0", "x", "1" * 5000):
        with pytest.raises(ValueError, match=r"--seeds: .* is no list of seeds such as 1,2"):
            compare.parse(["--seeds", f"2,{text}"])
        with pytest.raises(ValueError, match=r"--workers: .* is no whole number such as 2"):
            compare.parse(["--workers", text])


@pytest.mark.parametrize(
    ("own", "instead"),
    [
        ({"seed": 7}, "give --seeds"),
        ({"name": "foo"}, "another name"),
        ({"folder": "z"}, "--folder"),
    ],
)
def test_what_a_comparison_sets_itself_is_refused_wherever_it_is_given(tmp_path, own, instead):
    [(key, value)] = own.items()
    told = rf"run\.{key} is a run's own; .*{instead}"
    for overrides in ([f"--run.{key}", str(value)], [f"--run={{{key}: {value}}}"]):
        with pytest.raises(RecipeError, match=f"^{told}"):
            fabricated.load(tmp_path, overrides)
    rows = {**fabricated.ROWS, "slow": {**fabricated.ROWS["slow"], "recipe": {"run": own}}}
    for keys, where in (({"recipe": {"run": own}}, "recipe"), ({"rows": rows}, "rows.slow.recipe")):
        with pytest.raises(RecipeError, match=rf"compare\.yaml: {where}: {told}"):
            plans.load(changed(tmp_path, **keys), quick=True)


def test_a_base_recipe_may_have_a_name_and_a_seed(tmp_path):
    path = fabricated.build(tmp_path)
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["run"] |= {"name": "alone", "seed": 9}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    run = plans.load(path).recipe("pec", 2).run
    assert (run.name, run.seed) == ("pec-2", 2)
