"""DINOv2, or any ViT of transformers: an image encoder that judges nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.config import locate
from percent_ray.types import Prompt

DEFAULT = "facebook/dinov2-base"


def load(path: str, *, device: torch.device) -> "Dino":
    """The model of `path` (folder, hub id or shapes/NAME; DINOv2 base where empty)."""
    from transformers import AutoImageProcessor, AutoModel

    folder = locate(path or DEFAULT)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return Dino(
        model.requires_grad_(False).eval().to(device), AutoImageProcessor.from_pretrained(folder)
    )


class Dino:
    """A `Scorer` (scorers/base.py) that only encodes."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._processor = processor

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Always raises ValueError."""
        raise ValueError("scorers.dino only encodes images; set its weight to 0")

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """The class token after the last layer norm, on the CPU."""
        inputs = self._processor(
            images.to(self._model.device), return_tensors="pt", input_data_format="channels_first"
        )
        return self._model(inputs.pixel_values).last_hidden_state[:, 0].float().cpu()
