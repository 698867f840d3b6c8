"""HPSv2.1: CLIP ViT-H/14 trained on human preferences. Its image tower is an encoder.

Published as an open_clip state dict (xswu/HPSv2, HPS_v2.1_compressed.pt; Apache-2.0), read here
into transformers' CLIPModel. v2.0 has the same names and shapes and other numbers: its file must
not be renamed to v2.1's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pad

from percent_ray.models import pretrained
from percent_ray.scorers import open_clip_folder, state_file
from percent_ray.scorers.base import Report
from percent_ray.scorers.clip import text_features
from percent_ray.types import Prompt

PART: Final = "HPSv2.1"
DEFAULT: Final = "xswu/HPSv2"
FILE: Final = "HPS_v2.1_compressed.pt"
TOKENIZER: Final = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Of the CLIP that HPSv2 was trained from; all CLIPs have the same."""

VISION: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "hidden_act": "gelu",
}
FEATURES: int = 1024
"""open_clip's ViT-H-14."""

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


def load(path: str, *, device: torch.device) -> "HPSv2":
    """The weights of `path`: the file, or a folder or hub id with HPS_v2.1_compressed.pt in it
    (xswu/HPSv2 where empty). The tokenizer is the folder's, or LAION's ViT-H/14's where it has
    none."""
    from transformers import CLIPTokenizer

    file = state_file.find(path or DEFAULT, FILE, part=PART)
    place = state_file.beside(file, ("tokenizer.json", "vocab.json"), instead=TOKENIZER)
    tokenizer = pretrained.tokenizer(
        CLIPTokenizer,
        place,
        part="tokenizer",
        vocabulary=TEXT["vocab_size"],
        end=TEXT["eos_token_id"],
    )
    clip = model(state_file.read(file, part=PART, key="state_dict"), where=f"{PART} of {file}")
    said = f"{PART}: {pretrained.counted(file, clip)}; tokenizer of {place}"
    return HPSv2(clip.to(device), tokenizer, said)


def model(state: Mapping[str, Tensor], *, where: str) -> Any:
    """The CLIPModel of an open_clip state dict; `where` names its file in errors.

    Raises ValueError, in one line, where a weight is missing, unexpected or of another shape.
    """
    from transformers import CLIPConfig

    config = CLIPConfig(
        text_config={**TEXT, "projection_dim": FEATURES},
        vision_config={**VISION, "projection_dim": FEATURES},
        projection_dim=FEATURES,
    )
    return open_clip_folder.model(config, state, where=where)


class HPSv2:
    """A `Scorer` (scorers/base.py)."""

    def __init__(self, clip: Any, tokenizer: Any, description: str) -> None:
        self._clip = clip
        self._tokenizer = tokenizer
        self._description = description

    @torch.inference_mode()
    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Cosines of image and prompt, near 0.3, on the CPU. The trained logit scale is unused."""
        texts = text_features(
            self._clip,
            self._tokenizer,
            [prompt.text for prompt in prompts],
            tokens=TEXT["max_position_embeddings"],
        )
        return torch.cosine_similarity(self._images(images), texts, dim=-1).cpu()

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The score itself; papers have 0.25 to 0.35, or 100 times as much."""
        return Report(self.score(images, prompts), "cosine (HPSv2.1)")

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Projected image features, not normalised, on the CPU."""
        return self._images(images).cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._description

    def _images(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        pixels = preprocess(images.to(self._clip.device), side=VISION["image_size"])
        return self._clip.get_image_features(pixels).pooler_output


def preprocess(images: UInt8[Tensor, "N 3 H W"], *, side: int) -> Float32[Tensor, "N 3 side side"]:
    """HPSv2's own: the longer side to `side`, bicubic on floats without rounding or clipping, black
    to both sides of the shorter one, then CLIP's mean and deviation.

    With the filter against aliasing, as torchvision has it by default since 0.17; before, HPSv2 ran
    without.
    """
    pixels = images.float() / 255
    longest = max(pixels.shape[-2:])
    height, width = (round(length * side / longest) for length in pixels.shape[-2:])
    if longest != side:
        pixels = interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = pad(pixels, (left, side - width - left, top, side - height - top))
    mean, std = (pixels.new_tensor(x)[:, None, None] for x in (MEAN, STD))
    return (pixels - mean) / std
