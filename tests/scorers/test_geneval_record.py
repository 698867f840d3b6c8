"""The inputs of tests/inputs hold each rule; here is what they cannot see."""

from pathlib import Path

import pytest

from percent_ray.data.prompts import read_prompts
from percent_ray.recipe.tree import Scorer
from percent_ray.scorers.geneval_record import RELATIONS, TAGS, check, vocabulary
from percent_ray.shapes import scenes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "detector"),
    [
        ("percent_ray/shapes/prompts/train.jsonl", ""),
        ("percent_ray/shapes/prompts/test.jsonl", ""),
        ("jobs/recipes/prompts/geneval_553.jsonl", "some/detector"),
    ],
)
def test_every_shipped_record_is_good(path, detector):
    prompts = read_prompts(ROOT / path, judges={"geneval": Scorer(path=detector)})
    assert {prompt.metadata["tag"] for prompt in prompts} == set(TAGS)


def test_every_relation_that_is_drawn_is_known():
    assert set(scenes.RELATIONS) == set(RELATIONS)


def test_another_detector_has_other_words():
    record = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "brown"}]}
    check(record, vocabulary("some/detector"))
    with pytest.raises(ValueError, match=r"class is 'car'; known are circle, square, triangle, cr"):
        check(record, vocabulary(""))
