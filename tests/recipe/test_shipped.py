from pathlib import Path

import pytest
import yaml

from percent_ray.comparison import plan as plans
from percent_ray.recipe import command_line
from percent_ray.recipe import load as recipe
from percent_ray.recipe.section import METHODS

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
COMPARISONS = sorted(FOLDER.glob("compare_*.yaml"))
FILES = sorted({*FOLDER.glob("*.yaml")} - {*COMPARISONS, *FOLDER.glob("evaluate_*.yaml")})


def test_the_shipped_recipes_are_there():
    assert {path.stem for path in FILES} >= {
        "shapes_flow_grpo",
        "shapes_pec",
        "shapes_pec_paper",
        "shapes_pcvae",
        "shapes_geneval",
        "shapes_nft",
        "shapes_nft_pec",
        "sd35_medium_pickscore_pec",
        "sd35_medium_pickscore_nft_pec",
        "sd35_medium_geneval_nft",
        "sd35_medium_geneval_pec",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_loads(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    got = recipe.load(path)
    assert got.run.name == path.stem
    assert Path(got.data.prompts).is_absolute() or got.data.prompts.startswith("shapes/")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_holds_only_differences_in_at_most_40_lines(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    tree = yaml.safe_load(text)
    below = recipe.defaults()
    if base := tree.pop("base", None):
        below = recipe.merge(below, yaml.safe_load((FOLDER / base).read_text()))
    usual = dict(recipe.flatten(below))
    for key, value in recipe.flatten(tree):
        assert usual.get(key) != value, f"{path.name}: {key} is {value} without this line"


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_row_of_a_comparison_is_a_recipe(path):
    plan = plans.load(path)
    assert plan.comparison.name == path.stem
    assert len(plans.load(path, quick=True).comparison.rows) > 1


def test_every_method_has_a_row_in_a_comparison():
    names: set[str] = set()
    for file in ("compare_shapes.yaml", "compare_frontier.yaml"):
        plan = plans.load(FOLDER / file)
        names |= {plan.recipe(row, 1).method.name for row in plan.comparison.rows}
    assert names == set(METHODS)


def test_without_arguments_it_is_the_embedded_pec_recipe_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    got = command_line.parse([], job="jobs/train_pec.py", default=FOLDER / "shapes_pec.yaml").recipe
    assert (got.run.name, got.method.name) == ("shapes_pec", "marginal_pec")
    roles = (got.runtime.rollout, got.runtime.perception, got.runtime.learner)
    assert sum(role.gpus for role in roles) == 0
    assert sum(role.cpus * role.workers for role in roles) <= 2


def test_sd35_medium_carries_flow_grpos_hyper_parameters():
    for name, kl in (("pickscore", 0.01), ("geneval", 0.04)):
        got = recipe.load(FOLDER / f"sd35_medium_{name}_pec.yaml")
        assert (got.objective.kl, got.objective.kl_form) == (kl, "flow_grpo")
        assert (got.sampling.steps, got.sampling.noise_level, got.model.guidance) == (10, 0.7, 4.5)
        assert (got.data.groups_per_step, got.sampling.group_size) == (48, 24)
        assert (got.model.lora_rank, got.model.lora_alpha, got.learner.lr) == (32, 64, 3e-4)
        assert (got.objective.clip_low, got.objective.advantage_clip) == (1e-4, 5)
        assert [k for k, scorer in got.scorers.items() if scorer.weight] == [name]


def test_the_two_embedded_presets_of_the_forward_process_differ_in_their_method_only():
    plain, pec = (recipe.load(FOLDER / f"{name}.yaml") for name in ("shapes_nft", "shapes_nft_pec"))
    differing = {
        key
        for (key, one), (_, other) in zip(
            recipe.flatten(plain.model_dump(exclude={"method"})),
            recipe.flatten(pec.model_dump(exclude={"method"})),
            strict=True,
        )
        if one != other
    }
    assert differing == {"run.name"}


def test_sd35_medium_carries_diffusion_nfts_settings():
    for name, method in (("pickscore_nft_pec", "marginal_pec"), ("geneval_nft", "flow_grpo")):
        got = recipe.load(FOLDER / f"sd35_medium_{name}.yaml")
        assert (got.learner.process, got.method.name) == ("forward", method)
        assert (got.sampling.steps, got.sampling.solver, got.model.guidance) == (10, "dpmpp_2m", 1)
        assert (got.data.groups_per_step, got.sampling.group_size) == (48, 24)
        assert (got.forward.loss, got.forward.beta, got.forward.times) == ("nft", 1, 0)
        assert (got.objective.advantage_clip, got.objective.kl) == (5, 1e-4)
        assert got.learner.old.model_dump() == {"first": 0, "rise": 1e-3, "after": 0, "most": 0.5}
        assert (got.learner.lr, got.learner.updates, got.learner.weight_decay) == (3e-4, 1, 1e-4)
        assert (got.model.lora_rank, got.model.lora_alpha) == (32, 64)
        assert (got.learner.ema_decay, got.learner.ema_every) == (0.9, 1)
        assert got.runtime.max_staleness == 0
        assert [k for k, s in got.scorers.items() if s.weight] == [name.partition("_")[0]]
