import cv2
import numpy as np
import pytest
import torch

from percent_ray.scorers.geneval import judge, reward
from percent_ray.shapes import scenes
from percent_ray.shapes.detect import detect


def best(image):
    """(class, entry) of the most certain object."""
    found = detect(image)
    entries = [(name, entry) for name, boxes in found.items() for entry in boxes]
    return max(entries, key=lambda pair: pair[1]["score"], default=(None, {"score": 0.0}))


@pytest.mark.parametrize("task", scenes.TASKS)
def test_true_renders_are_judged_right_with_exact_counts(task):
    images, records = scenes.dataset(200, 77, task)
    found = [detect(image) for image in images]
    right = [judge(d, m) and reward(d, m) == 1.0 for d, m in zip(found, records, strict=True)]
    assert np.mean(right) >= 0.99


def test_boxes_and_colours_are_those_of_the_scene():
    for seed in range(60):
        scene, _ = scenes.example(seed)
        found = detect(scenes.render(scene))
        for item in scene.items:
            edges = np.array([item.x, item.y, item.x, item.y])
            edges += item.radius * np.array([-1, -1, 1, 1])
            errors = [
                np.abs(np.array(entry["box"]) - edges).max()
                for entry in found[item.shape]
                if entry["color"] == item.color
            ]
            assert min(errors, default=99.0) < 1.0, (seed, item)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_clean_shapes_score_high(shape):
    scene = scenes.Scene((scenes.Item(shape, "blue", 15.3, 16.4, 6.2),), (120, 115, 118))
    name, entry = best(scenes.render(scene))
    assert name == shape
    assert entry["score"] > 0.9


def test_a_smear_scores_low():
    image = np.full((32, 32, 3), 128, np.uint8)
    points = np.array([(4, 20), (10, 6), (13, 14), (26, 9), (20, 25), (12, 20)], np.int32)
    cv2.fillPoly(image, [points], scenes.COLORS["red"])
    assert best(image.transpose(2, 0, 1))[1]["score"] < 0.3


def test_half_a_shape_scores_low():
    scene = scenes.Scene((scenes.Item("circle", "green", 16, 16, 7),), (200, 200, 200))
    image = scenes.render(scene)
    image[:, :, 16:] = 200
    assert best(image)[1]["score"] < 0.5


def test_an_empty_picture_has_no_objects():
    found = detect(np.full((3, 32, 32), 90, np.uint8))
    assert found == {shape: [] for shape in scenes.SHAPES}


def test_noise_has_no_certain_objects():
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    assert best(image)[1]["score"] < 0.3


def test_tensors_and_arrays_give_the_same():
    image = scenes.render(scenes.example(5)[0])
    assert detect(torch.from_numpy(image)) == detect(image)


def test_weak_noise_changes_no_verdict():
    rng = np.random.default_rng(0)
    images, records = scenes.dataset(60, 78)
    noisy = np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    right = [judge(detect(i), m) for i, m in zip(noisy, records, strict=True)]
    assert np.mean(right) >= 0.95


def test_a_wrong_picture_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"uint8 \[3,H,W\], not float32 \[3, 32, 32\]"):
        detect(np.zeros((3, 32, 32), np.float32))
