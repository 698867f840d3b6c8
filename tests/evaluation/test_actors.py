"""What a library raises while a row is loaded or drawn is that row's failure, and no other's."""

import pytest
import torch

from percent_ray.evaluation import actors
from percent_ray.evaluation.actors import Drawer, NotLoaded
from percent_ray.evaluation.pipelines import PipelineRow
from percent_ray.evaluation.plan import Row
from percent_ray.types import Prompt

ROW = Row("row", "row", PipelineRow(pipeline="shapes/sd3"))
OPTIONS = {"images": 2, "seed": 1, "keep": False}


class Full:
    """A pipeline that loads, and finds no memory to draw."""

    def __init__(self, *_, **__):
        pass

    def describe(self):
        return "loaded"

    def draw(self, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_prompt_that_cannot_be_drawn(monkeypatch):
    monkeypatch.setattr(actors, "PipelineSource", Full)
    with pytest.raises(ValueError, match=r"^OutOfMemoryError: CUDA out of memory$") as caught:
        Drawer().draw(ROW, Prompt("a cat"), 0, **OPTIONS)
    assert not isinstance(caught.value, NotLoaded), "the next prompt may be smaller"


def test_a_row_that_cannot_be_loaded(monkeypatch):
    def source(*_, **__):
        raise TypeError("no such argument")

    monkeypatch.setattr(actors, "PipelineSource", source)
    with pytest.raises(NotLoaded, match=r"^TypeError: no such argument$"):
        Drawer().draw(ROW, Prompt("a cat"), 0, **OPTIONS)
