"""ImageReward: BLIP with cross attention and a linear head, trained on human preferences. Its image
tower is an encoder.

Published as a state dict (THUDM/ImageReward, ImageReward.pt; Apache-2.0, BLIP: BSD-3-Clause), read
here into transformers' BLIP.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from percent_ray.models import pretrained
from percent_ray.scorers import state_file
from percent_ray.scorers.base import Report, pixel_values
from percent_ray.types import Prompt

PART: Final = "ImageReward"
DEFAULT: Final = "THUDM/ImageReward"
FILE: Final = "ImageReward.pt"
TOKENIZER: Final = "google-bert/bert-base-uncased"
TOKENS: int = 35
"""Of a prompt, with the class token before and the separator after it; the rest is cut."""

VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
"""BLIP's large image tower; transformers' default for the norm is another."""
TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
"""The published med_config.json; transformers' default has 8 heads, of the same shapes."""
HEAD: Final = (1024, 128, 64, 16, 1)
"""Widths after the text tower's, of linear layers with nothing but dropout between them."""

MEAN: Final = 0.16717362830052426
DEVIATION: Final = 1.0333394966054072
"""Of the head's values in the training data."""

UNUSED: Final = (
    "blip.vision_proj.",
    "blip.text_proj.",
    "blip.text_encoder.embeddings.position_ids",
)
"""In the published file and read by nothing: BLIP's heads for retrieval, and a row of numbers."""

_NAMES: Final = (
    ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
    ("vision.post_layernorm", "blip.visual_encoder.norm"),
    ("vision.encoder.layers.", "blip.visual_encoder.blocks."),
    (".layer_norm", ".norm"),
    (".self_attn.qkv", ".attn.qkv"),
    (".self_attn.projection", ".attn.proj"),
    ("text.", "blip.text_encoder."),
    ("head.", "mlp.layers."),
)
"""Names in `Blip`, and the published ones."""


def load(path: str, *, device: torch.device) -> "ImageReward":
    """The weights of `path`: the file, or a folder or hub id with ImageReward.pt in it
    (THUDM/ImageReward where empty). The tokenizer is the folder's, or BERT's where it has none."""
    from transformers import BertTokenizer, CLIPImageProcessor

    file = state_file.find(path or DEFAULT, FILE, part=PART)
    place = state_file.beside(file, ("tokenizer.json", "vocab.txt"), instead=TOKENIZER)
    tokenizer = pretrained.tokenizer(
        BertTokenizer, place, part="tokenizer", vocabulary=TEXT["vocab_size"]
    )
    state = state_file.read(file, part=PART)
    side = VISION["image_size"]
    # CLIP's: the shorter side to `side`, bicubic; the middle; CLIP's mean and deviation.
    processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    blip = model(state, where=f"{PART} of {file}").to(device)
    return ImageReward(blip, tokenizer, processor, _described(file, blip, state, place))


def model(state: Mapping[str, Tensor], *, where: str) -> "Blip":
    """The model of the published state dict; `where` names its file in errors.

    Raises ValueError, in one line, where a weight is missing, unexpected or of another shape.
    """
    return state_file.fill(Blip, state, _source, where=where, unused=UNUSED)


class Blip(nn.Module):
    """BLIP's image tower, BERT with cross attention to it in every layer, and the head."""

    def __init__(self) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**VISION))
        # Layers have cross attention where the config calls them a decoder's; without `is_decoder`
        # in the call, every word sees every other.
        text = BlipTextConfig(
            **TEXT, encoder_hidden_size=VISION["hidden_size"], is_decoder=True, use_cache=False
        )
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = state_file.linear_head(TEXT["hidden_size"], HEAD, gaps=3)

    def patches(self, pixels: Float32[Tensor, "N 3 S S"]) -> Float32[Tensor, "N L D"]:
        """The class token and the patches after the last norm."""
        return self.vision(pixels).last_hidden_state

    def forward(self, pixels: Float32[Tensor, "N 3 S S"], tokens: Any) -> Float32[Tensor, " N"]:
        """The head's value of the first word's place, which has seen the image."""
        words = self.text(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=self.patches(pixels),
        )
        return self.head(words.last_hidden_state[:, 0])[:, 0]


class ImageReward:
    """A `Scorer` (scorers/base.py)."""

    def __init__(self, blip: Blip, tokenizer: Any, processor: Any, description: str) -> None:
        self._blip = blip
        self._tokenizer = tokenizer
        self._processor = processor
        self._description = description

    @torch.inference_mode()
    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Deviations from the mean of the training data, about -2.3 to 2, on the CPU."""
        tokens = self._tokenizer(
            [prompt.text for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        ).to(self._device)
        return ((self._blip(self._pixels(images), tokens) - MEAN) / DEVIATION).cpu()

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The score itself."""
        return Report(self.score(images, prompts), "ImageReward")

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """The image tower's class token after the last norm, not normalised, on the CPU."""
        return self._blip.patches(self._pixels(images))[:, 0].cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._description

    @property
    def _device(self) -> torch.device:
        return self._blip.vision.device

    def _pixels(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N 3 S S"]:
        return pixel_values(self._processor, images.to(self._device))


def _source(name: str) -> state_file.Source:
    return state_file.renamed(name, _NAMES), state_file.whole


def _described(file: Path, blip: Blip, state: Mapping[str, Tensor], tokenizer: str) -> str:
    unread = sum(name.startswith(UNUSED) for name in state)
    return (
        f"{PART}: {pretrained.counted(file, blip)}, {unread} of the file's tensors not needed; "
        f"tokenizer of {tokenizer}"
    )
