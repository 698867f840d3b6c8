import json
from pathlib import Path

import pytest

from percent_ray.scorers.geneval import failure, judge, relations, reward

CASES = json.loads((Path(__file__).parents[1] / "golden" / "geneval_rules.json").read_text())


def box(x, y, score=0.95, color="red", half=5):
    return {"box": [x - half, y - half, x + half, y + half], "score": score, "color": color}


def test_verdicts_agree_with_the_golden_file():
    wrong = [
        i
        for i, case in enumerate(CASES)
        if judge(case["detections"], case["metadata"]) != case["correct"]
    ]
    assert len(CASES) == 120
    assert not wrong


def test_golden_file_has_every_task_with_both_verdicts():
    seen = {(case["metadata"]["tag"], case["correct"]) for case in CASES}
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("tag", "score", "right"),
    [
        ("single_object", 0.31, True),
        ("single_object", 0.30, False),
        ("counting", 0.91, True),
        ("counting", 0.90, False),
    ],
)
def test_a_score_must_exceed_the_threshold_of_its_task(tag, score, right):
    metadata = {"tag": tag, "include": [{"class": "circle", "count": 1}]}
    assert judge({"circle": [box(9, 9, score)]}, metadata) is right


def test_the_most_confident_boxes_are_judged():
    metadata = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
    found = {"circle": [box(9, 9, 0.5, "red"), box(20, 20, 0.8, "blue")]}
    assert not judge(found, metadata)
    found["circle"][0]["score"] = 0.9
    assert judge(found, metadata)


def test_one_too_many_is_excluded_in_counting():
    metadata = {
        "tag": "counting",
        "include": [{"class": "circle", "count": 2}],
        "exclude": [{"class": "circle", "count": 3}],
    }
    two = [box(5, 5), box(20, 20)]
    assert judge({"circle": two}, metadata)
    assert not judge({"circle": [*two, box(5, 20)]}, metadata)
    assert judge({"circle": [*two, box(5, 20, score=0.5)]}, metadata)


def test_only_sixteen_boxes_of_a_class_count():
    metadata = {"tag": "single_object", "include": [{"class": "circle", "count": 17}]}
    assert not judge({"circle": [box(9, 9)] * 20}, metadata)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (5, 16, {"left of"}),
        (27, 16, {"right of"}),
        (16, 5, {"above"}),
        (16, 27, {"below"}),
        (4, 4, {"left of", "above"}),
        (17, 16, set()),
    ],
)
def test_relations_of_equal_boxes(x, y, expected):
    assert relations(box(x, y, half=3), box(16, 16, half=3)) == expected


POSITION = {
    "tag": "position",
    "include": [
        {"class": "square", "count": 1},
        {"class": "circle", "count": 1, "position": ["left of", 0]},
    ],
}


def test_a_picture_fails_for_the_first_demand_that_is_not_met():
    """Of all its demands: a wrong place is told only where everything is there in its colour."""
    colors = [
        {"class": "circle", "count": 1, "color": "red"},
        {"class": "square", "count": 1, "color": "blue"},
    ]
    pair = {"tag": "color_attr", "include": colors}
    blue = box(9, 9, color="blue")
    assert failure({"circle": [box(9, 9, color="red")], "square": [blue]}, pair) == ""
    assert failure({"circle": [blue], "square": [blue]}, pair) == "color"
    assert failure({"circle": [blue]}, pair) == "missing"
    beside = {"circle": [box(25, 16)], "square": [box(5, 16)]}
    assert failure(beside, POSITION) == "position"
    assert failure({"circle": [box(25, 16)]}, POSITION) == "missing"
    counted = {
        "tag": "counting",
        "include": [{"class": "circle", "count": 1}],
        "exclude": [{"class": "circle", "count": 2}],
    }
    assert failure({"circle": [box(5, 5), box(20, 20)]}, counted) == "too many"


def test_reward_of_a_position_with_and_without_the_quirk():
    right = {"circle": [box(5, 16)], "square": [box(25, 16)]}
    wrong = {"circle": [box(25, 16)], "square": [box(5, 16)]}
    assert reward(right, POSITION) == 1.0
    assert reward(right, POSITION, position_quirk=True) == 1.0
    assert reward(wrong, POSITION) == pytest.approx(2 / 3)
    assert reward(wrong, POSITION, position_quirk=True) == pytest.approx(3 / 4)


def test_reward_takes_all_boxes_and_one_term_a_demand():
    metadata = {"tag": "colors", "include": [{"class": "circle", "count": 2, "color": "red"}]}
    assert reward({"circle": [box(5, 5), box(20, 20)]}, metadata) == 1.0
    assert reward({"circle": [box(5, 5), box(20, 20, color="blue")]}, metadata) == 0.75
    assert reward({"circle": [box(5, 5)]}, metadata) == 0.25
    assert reward({}, metadata) == 0.0


def test_reward_counts_what_is_too_many():
    metadata = {"tag": "counting", "include": [{"class": "circle", "count": 2}]}
    assert reward({"circle": [box(5, 5), box(20, 20), box(5, 20)]}, metadata) == 0.5
