from pathlib import Path

from percent_ray.recipe import load as recipes
from percent_ray.run import _cut
from percent_ray.types import Prompt


def test_a_run_says_how_many_prompts_its_tokenizers_cut():
    recipe = recipes.load(Path(__file__).parents[1] / "jobs" / "recipes" / "shapes_pec.yaml")
    short, long = Prompt("a red circle"), Prompt("a red circle and " * 5 + "a blue square")
    assert _cut(recipe, [short]) == []
    said = "of the model cuts 1 of 2 prompts at 12 tokens; the longest has 25: 'a red circle and a"
    for line, name in zip(_cut(recipe, [short, long]), ("tokenizer", "tokenizer_2"), strict=True):
        assert line.startswith(f"{name} {said}")
