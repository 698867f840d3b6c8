"""What the README says can be typed."""

import re
from pathlib import Path

import pytest
import torch

from percent_ray.models import sd3
from percent_ray.recipe import load as recipes
from percent_ray.recipe.section import METHODS
from tests.models.cases import perturb

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SAVED = "runs/shapes_pec/checkpoints/step-00000040/policy"


def test_the_trained_lora_is_loaded_by_the_lines_of_the_readme(tmp_path, monkeypatch):
    recipe = recipes.load(ROOT / "jobs" / "recipes" / "shapes_pec.yaml")
    policy = sd3.load_policy(recipe.model, seed=1, device=torch.device("cpu"), text=False)
    perturb(policy.trainable())
    policy.save(str(tmp_path), policy.trainable())
    monkeypatch.chdir(ROOT)
    [lines] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert SAVED in lines
    names: dict = {}
    exec(lines.replace(SAVED, str(tmp_path)).replace("circle.png", str(tmp_path / "x.png")), names)
    assert (tmp_path / "x.png").is_file()
    [adapter] = names["pipe"].get_list_adapters().values()
    assert len(adapter) == 1, "the LoRA is in the pipeline"


@pytest.mark.parametrize("name", re.findall(r"`((?:shapes|sd35)_\w+)`", README))
def test_a_named_recipe_or_comparison_is_there(name):
    places = [ROOT / "jobs" / "recipes" / f"{name}.yaml", ROOT / "benchmarks" / "results" / name]
    assert any(place.exists() for place in places)


def test_every_method_is_named_and_every_path_is_there():
    for method in METHODS:
        assert f"`{method}`" in README
    for path in re.findall(
        r"\b((?:jobs|tests|docs|percent_ray|benchmarks|cluster)/[\w/.-]+)", README
    ):
        if "NAME" not in path and "FILE" not in path:
            assert (ROOT / path.rstrip(".")).exists(), path
