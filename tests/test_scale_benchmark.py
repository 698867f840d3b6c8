"""What the benchmark of scale counts; its numbers are measured by hand."""

import importlib
from pathlib import Path

import pytest

from percent_ray.types import Span


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("scale")


def test_the_gap_is_of_one_worker_and_of_sampling_alone(scale):
    spans = [
        Span("sample", "rollout-0", 0.0, 5.0),
        Span("perceive", "rollout-0", 5.0, 5.5),
        Span("sample", "rollout-1", 3.0, 8.0),
        Span("sample", "rollout-0", 5.25, 10.0),
        Span("sample", "rollout-1", 8.25, 13.0),
    ]
    assert scale.between(spans) == 0.25


@pytest.mark.parametrize(("perceive_s", "workers"), [(0.461, 1), (2.968, 2), (7.968, 4)])
def test_perception_keeps_up_with_the_rollout(scale, perceive_s, workers):
    recipe = scale.settings(2, steps=3, images=24, perceive_s=perceive_s)
    assert recipe.runtime.perception.workers == workers
    assert recipe.data.groups_per_step == 3
