"""Aesthetic Predictor V2.5: a linear head on SigLIP so400m's image features, about 1 to 10. SigLIP
is an encoder; prompts are not read.

The head is published in the repository discus0434/aesthetic-predictor-v2-5 on GitHub
(models/aesthetic_predictor_v2_5.pth), under AGPL-3.0: it is not downloaded for you. SigLIP is
Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from percent_ray.models import pretrained
from percent_ray.scorers import state_file
from percent_ray.scorers.base import Report, pixel_values
from percent_ray.types import Prompt

HAS_DEFAULT = False

PART: Final = "aesthetic head"
FILE: Final = "aesthetic_predictor_v2_5.pth"
SIGLIP: Final = "google/siglip-so400m-patch14-384"
WIDTHS: Final = (1024, 128, 64, 16, 1)
"""After SigLIP's, of linear layers with nothing but dropout between them."""
UNUSED: Final = ("text_model.", "logit_scale", "logit_bias")
"""Of a folder with all of SigLIP: its text tower, which nothing here reads."""


def load(path: str, *, device: torch.device) -> "Aesthetic":
    """The head of `path`: the file, or a folder or hub id with aesthetic_predictor_v2_5.pth in it.
    SigLIP is the folder's, or google/siglip-so400m-patch14-384 where it has none."""
    from transformers import SiglipVisionModel

    if not path:
        raise ValueError(
            f"{PART}: has no default, for its licence is AGPL-3.0; set path to {FILE} of "
            "discus0434/aesthetic-predictor-v2-5 on GitHub, or to a folder with it"
        )
    file = state_file.find(path, FILE, part=PART)
    state = state_file.read(file, part=PART)
    place = state_file.beside(file, ("config.json",), instead=SIGLIP)
    processor = pretrained.image_processor(place)
    siglip = pretrained.load(
        SiglipVisionModel, place, part="SigLIP", unused=UNUSED, dtype=torch.float32
    )
    layers = head(state, width=siglip.config.hidden_size, where=f"{PART} of {file}")
    said = f"{pretrained.described(place, siglip)}; {pretrained.counted(file, layers)}"
    return Aesthetic(siglip.requires_grad_(False).to(device), layers.to(device), processor, said)


def head(state: Mapping[str, Tensor], *, width: int, where: str) -> "Head":
    """The head of the published state dict on features of `width`; `where` names its file.

    Raises ValueError, in one line, where a weight is missing, unexpected or of another shape.
    """
    return state_file.fill(
        lambda: Head(width), state, lambda name: (name, state_file.whole), where=where
    )


class Head(nn.Module):
    """The score of features of length 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scoring_head = state_file.linear_head(width, WIDTHS, gaps=4)

    def forward(self, features: Float32[Tensor, "N D"]) -> Float32[Tensor, " N"]:
        return self.scoring_head(normalize(features, dim=-1))[:, 0]


class Aesthetic:
    """A `Scorer` (scorers/base.py)."""

    def __init__(self, siglip: Any, layers: Head, processor: Any, description: str) -> None:
        self._siglip = siglip
        self._head = layers
        self._processor = processor
        self._description = description

    @torch.inference_mode()
    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """About 1 to 10, 5.5 and more for good pictures, on the CPU."""
        return self._head(self._features(images)).cpu()

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The score itself."""
        return Report(self.score(images, prompts), "aesthetic v2.5 (1 to 10)")

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """SigLIP's pooled image features, not normalised, on the CPU."""
        return self._features(images).cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._description

    def _features(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        pixels = pixel_values(self._processor, images.to(self._siglip.device))
        return self._siglip(pixels).pooler_output
