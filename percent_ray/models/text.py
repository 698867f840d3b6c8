"""Text towers of a diffusers pipeline: what the model families share in encoding prompts."""

from collections.abc import Mapping
from typing import Any

import torch

from percent_ray.models import pretrained
from percent_ray.recipe import tree


def tower(
    model: tree.Model,
    kind: Any,
    tokenizer: Any,
    *,
    number: str,
    device: torch.device,
    instead: str = "",
) -> dict[str, Any]:
    """A text tower of `model.path`, of the transformers class `kind`, frozen in `model.dtype`, and
    its tokenizer, by their names in the pipeline: `number` is `""`, `_2` or `_3`. `instead` is what
    else may be set where they cannot be read.

    Raises ValueError, in one line, for a missing weight and for a tokenizer of another tower.
    """
    encoder = pretrained.load(
        kind,
        model.folder,
        part=f"model.path: text_encoder{number}",
        subfolder=f"text_encoder{number}",
        instead=instead,
        dtype=getattr(torch, model.dtype),
    )
    tokens = pretrained.tokenizer(
        tokenizer,
        model.folder,
        part=f"model.path: tokenizer{number}",
        vocabulary=encoder.config.vocab_size,
        subfolder=f"tokenizer{number}",
        instead=instead,
    )
    frozen = encoder.requires_grad_(False).to(device)
    return {f"text_encoder{number}": frozen, f"tokenizer{number}": tokens}


def has(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline's model_index.json names a model for `part`."""
    return (index.get(part) or [None])[0] is not None
