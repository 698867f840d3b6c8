"""DINOv2, or any ViT of transformers: an image encoder that judges nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.models import pretrained
from percent_ray.recipe.paths import locate
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt

DEFAULT = "facebook/dinov2-base"


def load(path: str, *, device: torch.device) -> "Dino":
    """The model of `path` (folder, hub id or shapes/NAME; DINOv2 base where empty)."""
    from transformers import AutoImageProcessor, AutoModel

    folder = locate(path or DEFAULT)
    processor = AutoImageProcessor.from_pretrained(folder)
    # The class token is read before any pooler; DINO v1 was published without one.
    unused = ("pooler.",)
    model = pretrained.load(AutoModel, folder, part="model", unused=unused, dtype=torch.float32)
    description = pretrained.described(folder, model)
    return Dino(model.requires_grad_(False).to(device), processor, description)


class Dino:
    """A `Scorer` (scorers/base.py) that only encodes."""

    def __init__(self, model: Any, processor: Any, description: str) -> None:
        self._model = model
        self._processor = processor
        self._description = description

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Always raises ValueError."""
        raise ValueError("a dino only encodes images; set its weight to 0")

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """Always raises ValueError."""
        raise ValueError("a dino only encodes images; leave it out of the judges")

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """The class token after the last layer norm, on the CPU."""
        inputs = self._processor(
            images.to(self._model.device), return_tensors="pt", input_data_format="channels_first"
        )
        return self._model(inputs.pixel_values).last_hidden_state[:, 0].float().cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._description
