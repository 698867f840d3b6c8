"""PickScore: CLIP ViT-H/14 trained on human preferences. Its image tower is an encoder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.recipe.paths import locate
from percent_ray.scorers.base import Report
from percent_ray.scorers.clip import Towers
from percent_ray.types import Prompt

DEFAULT = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""PickScore_v1 was published without its processors; these are what it was trained with."""
TRAINING_UNIT = 26.0
"""Logits a unit of the training reward, as in Flow-GRPO: rewards are near 0.8."""
REPORT_UNIT = 100.0
"""Logits a unit of the report: papers have 0.20 to 0.25."""


def load(path: str, *, device: torch.device) -> "PickScore":
    """The CLIPModel of `path` (folder, hub id or shapes/NAME; PickScore_v1 where empty). A folder
    with processor files is used with them, any other path with PickScore_v1's."""
    folder = locate(path or DEFAULT)
    own = any(
        (Path(folder) / f"{kind}_config.json").is_file() for kind in ("processor", "preprocessor")
    )
    return PickScore(Towers(folder, processor=folder if own else PROCESSOR, device=device))


class PickScore:
    """A `Scorer` (scorers/base.py)."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """exp(logit scale) x cosine / 26, on the CPU."""
        return self._towers.cosine(images, prompts) * (self._towers.logit_scale / TRAINING_UNIT)

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """Logits / 100."""
        scale = self._towers.logit_scale / REPORT_UNIT
        return Report(self._towers.cosine(images, prompts) * scale, "score / 100")

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Projected image features, not normalised, on the CPU."""
        return self._towers.images(images).cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._towers.description
