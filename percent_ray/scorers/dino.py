"""DINOv2, or any image model of transformers: an image encoder that judges nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.models import pretrained
from percent_ray.recipe.paths import locate
from percent_ray.scorers.base import Report, pixel_values
from percent_ray.types import Prompt

SCORES = False

DEFAULT = "facebook/dinov2-base"


CLIP = "clip_vision_model"
CLASS_TOKENS = ("cls_token", "class_embedding")
"""Weights of the class token that a ViT puts before its patches."""


def load(path: str, *, device: torch.device) -> "Dino":
    """The model of `path` (folder, hub id or shapes/NAME; DINOv2 base where empty)."""
    from transformers import AutoModel

    folder = locate(path or DEFAULT)
    empty = pretrained.skeleton(AutoModel, folder, part="model", subfolder="", dtype=torch.float32)
    processor = pretrained.image_processor(folder)
    if hasattr(empty, "get_image_features"):
        raise ValueError(
            f"model of {folder}: a {type(empty).__name__} reads pictures and texts; give a folder "
            "of its vision model alone, or set the scorer's kind to clip where it is a CLIPModel"
        )
    names = [name.rpartition(".")[2] for name, _ in empty.named_parameters()]
    has_class_token = any(name in CLASS_TOKENS for name in names)
    # The class token is read before any pooler; DINO v1 was published without one.
    unused = ("pooler.",) if has_class_token else ()
    model = pretrained.load(AutoModel, folder, part="model", unused=unused, dtype=torch.float32)
    features = "class token" if has_class_token else "pooled by its own pooler"
    return Dino(
        model.requires_grad_(False).to(device),
        processor,
        f"{pretrained.described(folder, model)}; features: {features}",
        has_class_token=has_class_token,
    )


class Dino:
    """A `Scorer` (scorers/base.py) that only encodes."""

    def __init__(
        self, model: Any, processor: Any, description: str, *, has_class_token: bool
    ) -> None:
        self._model = model
        self._processor = processor
        self._description = description
        self._has_class_token = has_class_token
        self._is_clip = getattr(model.config, "model_type", "") == CLIP

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
        """The class token after the last layer norm, which in CLIP's vision model is its pooler; of
        a model without one, such as SigLIP's, what its own pooler makes of the patches. On the
        CPU."""
        output = self._model(pixel_values(self._processor, images.to(self._model.device)))
        if self._has_class_token and not self._is_clip:
            return output.last_hidden_state[:, 0].float().cpu()
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(
                f"a {type(self._model).__name__} has no class token and no pooler; give another"
            )
        return pooled.flatten(1).float().cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._description
