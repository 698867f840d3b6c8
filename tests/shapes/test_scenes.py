import json
import time
from importlib.resources import files

import numpy as np
import pytest

from jobs.pretrain_shapes.clip import true_detections
from jobs.pretrain_shapes.prompts import split
from percent_ray.scorers.geneval import judge
from percent_ray.shapes import scenes


def test_scenes_are_functions_of_their_seed():
    images, records = scenes.dataset(50, 3)
    again, same = scenes.dataset(50, 3)
    other, _ = scenes.dataset(50, 4)
    assert np.array_equal(images, again)
    assert records == same
    assert not np.array_equal(images, other)
    assert images.shape == (50, 3, 32, 32)
    assert images.dtype == np.uint8


def test_twenty_thousand_renders_take_seconds():
    start = time.process_time()
    scenes.dataset(1000, 0)
    assert 20 * (time.process_time() - start) < 30


@pytest.mark.parametrize("task", scenes.TASKS)
def test_metadata_is_true_of_its_scene(task):
    for seed in range(200):
        scene, metadata = scenes.example(seed, task)
        assert metadata["tag"] == task
        assert judge(true_detections(scene), metadata), (seed, metadata["prompt"])
        assert len(scene.items) == sum(entry["count"] for entry in metadata["include"])


def test_items_lie_inside_and_apart():
    for seed in range(300):
        items = scenes.example(seed)[0].items
        for i, item in enumerate(items):
            assert min(item.x, item.y) - item.radius >= 0
            assert max(item.x, item.y) + item.radius <= scenes.SIZE
            for other in items[:i]:
                gap = max(abs(item.x - other.x), abs(item.y - other.y))
                assert gap - item.radius - other.radius >= 1.5


def test_a_position_holds_and_no_other_does():
    for seed in range(200):
        scene, metadata = scenes.example(seed, "position")
        anchor, item = scene.items
        assert scenes.relations(item, anchor) == {metadata["include"][1]["position"][0]}


def test_backgrounds_are_muted():
    assert all(np.ptp(scenes.example(seed)[0].background) <= 32 for seed in range(200))


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="unknown task 'ocr'; the tasks are single_object"):
        scenes.example(0, "ocr")


def test_shipped_prompts_are_what_the_code_writes_and_do_not_overlap():
    folder = files("percent_ray.shapes") / "prompts"
    shipped = [
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    ]
    assert tuple(shipped) == split()
    train, test = ({record["prompt"] for record in records} for records in shipped)
    assert not train & test
    assert {record["tag"] for record in shipped[0]} == set(scenes.TASKS)
    assert {record["tag"] for record in shipped[1]} == set(scenes.TASKS)
