"""Text towers of a diffusers pipeline: what the model families share in encoding prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from percent_ray.models import pretrained
from percent_ray.recipe import tree

NEEDED = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")
"""Parts without which no pipeline here works; further text encoders and tokenizers are numbered."""


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
    # CLIP's pooled features are those of one token, and its pipelines pad to the tokenizer's limit.
    limits: dict[str, int] = {}
    if hasattr(encoder.config, "max_position_embeddings"):
        limits = {
            "end": encoder.config.eos_token_id,
            "longest": encoder.config.max_position_embeddings,
        }
    tokens = pretrained.tokenizer(
        tokenizer,
        model.folder,
        part=f"model.path: tokenizer{number}",
        vocabulary=encoder.config.vocab_size,
        **limits,
        subfolder=f"tokenizer{number}",
        instead=instead,
    )
    frozen = encoder.requires_grad_(False).to(device)
    return {f"text_encoder{number}": frozen, f"tokenizer{number}": tokens}


def check_width(part: str, width: int, network: Any, key: str, model: tree.Model) -> None:
    """Raises ValueError where a text tower gives other features than the transformer takes."""
    if width != network.config[key]:
        raise ValueError(
            f"model.path: {part} of {model.path}: its config.json gives {width} features and the "
            f"transformer's {key} is {network.config[key]}; give a folder with both of one model"
        )


def has(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline's model_index.json names a model for `part`."""
    return (index.get(part) or [None])[0] is not None


def check_index(index: Mapping[str, Any], model: tree.Model) -> None:
    """Raises ValueError where a model_index.json does not give library and class of a part that is
    read, or [null, null] for one that the pipeline can do without."""
    for part, named in index.items():
        whole = isinstance(named, list) and len(named) == 2
        known = whole and all(isinstance(name, str) for name in named)
        can_lack = part not in NEEDED and named == [None, None]
        if part.startswith(NEEDED) and not known and not can_lack:
            raise ValueError(
                f"model.path: {part} of {model.path}: model_index.json gives {named!r} for it, "
                "expected its library and class; give the file as save_pretrained writes it"
            )


def parts(model: tree.Model, prefix: str) -> Iterator[tuple[str, Any]]:
    """Name and transformers class of every part of `model.path` that begins with `prefix`, but for
    T5's where `model.t5` leaves it out. Raises ValueError, in one line, for an unknown class."""
    import transformers
    from diffusers import DiffusionPipeline

    index = pretrained.config(DiffusionPipeline, model.folder, part="model.path: pipeline")
    check_index(index, model)
    for part in sorted(name for name in index if name.startswith(prefix) and has(index, name)):
        kind = index[part][1]
        if "T5" in kind and not model.t5:
            continue
        if not hasattr(transformers, kind):
            raise ValueError(f"model.path: {part} of {model.path} is a {kind}, which is not known")
        yield part, getattr(transformers, kind)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a tokenizer leaves out."""

    prompts: int
    """That it cuts off."""
    most: int
    """Tokens that it keeps."""
    longest: int
    """Tokens of the longest prompt."""
    which: int
    """Its number."""


def cut(model: tree.Model, prompts: Sequence[str]) -> dict[str, Cut]:
    """By tokenizer of `model.path` what it cuts off of prompts; empty where the pipeline names no
    tokenizer. Raises ValueError, in one line, for one that cannot be read."""
    found: dict[str, Cut] = {}
    for part, kind in parts(model, "tokenizer"):
        tokens = pretrained.read(kind, model.folder, part=f"model.path: {part}", subfolder=part)
        most = model.max_sequence_length if "T5" in kind.__name__ else tokens.model_max_length
        # Asked whole, a tokenizer would warn of every text that is too long.
        lengths = [len(ids) for ids in tokens(list(prompts), verbose=False).input_ids]
        longest = max(lengths)
        found[part] = Cut(
            sum(length > most for length in lengths), most, longest, lengths.index(longest)
        )
    return found
