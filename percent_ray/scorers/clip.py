"""CLIP score: the cosine of image and prompt. Its image tower is an encoder.

Of transformers' folders (OpenAI's ViT-L/14, MIT, is the default) and of open_clip's: Apple's DFN5B
ViT-H/14 at 378 pixels, whose weights are for research only, gives numbers near those of the paper.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.models import pretrained
from percent_ray.recipe.paths import locate
from percent_ray.scorers import open_clip_folder
from percent_ray.scorers.base import Report, pixel_values
from percent_ray.types import Prompt

DEFAULT = "openai/clip-vit-large-patch14"


def load(path: str, *, device: torch.device) -> "Clip":
    """The CLIPModel of `path` (folder, hub id or shapes/NAME; ViT-L/14 where empty)."""
    folder = locate(path or DEFAULT)
    return Clip(Towers(folder, processor=folder, device=device))


class Clip:
    """A `Scorer` (scorers/base.py)."""

    def __init__(self, towers: "Towers") -> None:
        self._towers = towers

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Cosines in -1..1, on the CPU."""
        return self._towers.cosine(images, prompts)

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The score itself."""
        return Report(self.score(images, prompts), "cosine")

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Projected image features, not normalised, on the CPU."""
        return self._towers.images(images).cpu()

    def describe(self) -> str:
        """What was loaded."""
        return self._towers.description


class Towers:
    """The float32 image and text towers of a CLIPModel with its own processors, of a folder of
    transformers or of open_clip.

    Raises ValueError, in one line, for a folder without all of its weights or tokenizer.
    """

    def __init__(self, folder: str, *, processor: str, device: torch.device) -> None:
        own = open_clip_folder.here(folder)
        parts = open_clip_folder.read(folder) if own else _read(folder, processor)
        model, self._tokenizer, self._image_processor, self.description = parts
        text = model.config.text_config
        self._model = model.requires_grad_(False).to(device)
        self._device = device
        self._tokens = min(self._tokenizer.model_max_length, text.max_position_embeddings)

    @property
    def logit_scale(self) -> float:
        """exp of the trained logit scale: 100 in most CLIPs."""
        return self._model.logit_scale.exp().item()

    @torch.inference_mode()
    def images(self, images: Iterable[UInt8[Tensor, "3 H W"]]) -> Float32[Tensor, "N D"]:
        """Projected features of images of any sizes, not normalised, on the model's device."""
        given = [image.to(self._device) for image in images]
        pixels = pixel_values(self._image_processor, given)
        return self._model.get_image_features(pixels).pooler_output.float()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float32[Tensor, "N D"]:
        """Projected features, not normalised, on the model's device."""
        return text_features(self._model, self._tokenizer, texts, tokens=self._tokens)

    @torch.inference_mode()
    def cosine(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Cosine of each image and its prompt, on the CPU."""
        texts = self.texts([prompt.text for prompt in prompts])
        return torch.cosine_similarity(self.images(images), texts, dim=-1).cpu()


def _read(folder: str, processor: str) -> tuple[Any, Any, Any, str]:
    """CLIPModel, tokenizer and image processor of transformers' folders, and what was loaded."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    text: Any = pretrained.read(CLIPConfig, folder, part="model").text_config
    # The small files first: what is not there is told before a gigabyte is read.
    tokenizer = pretrained.tokenizer(
        CLIPTokenizer,
        processor,
        part="tokenizer",
        vocabulary=text.vocab_size,
        end=text.eos_token_id,
    )
    images = pretrained.image_processor(processor)
    model = pretrained.load(CLIPModel, folder, part="model", dtype=torch.float32)
    return model, tokenizer, images, pretrained.described(folder, model)


def text_features(
    model: Any, tokenizer: Any, texts: Sequence[str], *, tokens: int
) -> Float32[Tensor, "N D"]:
    """A CLIPModel's projected features of texts, cut at `tokens`, on its device. A text is encoded
    once however often it is given: a group has one prompt and many images."""
    once = list(dict.fromkeys(texts))
    inputs = tokenizer(
        once, padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"
    ).to(model.device)
    encoded = model.get_text_features(inputs.input_ids, attention_mask=inputs.attention_mask)
    return encoded.pooler_output.float()[[once.index(text) for text in texts]]
