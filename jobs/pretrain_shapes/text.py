"""The vocabulary: a real CLIPTokenizer in which each word of the captions is one token."""

import json
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTokenizer

from percent_ray.shapes import scenes

MAX_LENGTH: Final = 12
"""Tokens of a caption with start and end; the longest caption takes all of them."""

WORDS: Final = (
    *("a", "photo", "of", "and", "left", "right", "above", "below"),
    *scenes.NUMBERS.values(),
    *scenes.SHAPES,
    *scenes.PLURALS.values(),
    *scenes.COLORS,
)


def build_tokenizer() -> CLIPTokenizer:
    """Bytes, bytes that end a word, the merges that WORDS need, start and end: CLIP's layout."""
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    bpe.train_from_iterator(WORDS, BpeTrainer(end_of_word_suffix="</w>", show_progress=False))
    merges: Any = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def text_config(width: int, layers: int) -> CLIPTextConfig:
    """A small text tower that pools the true end token.

    The ids must be given: their defaults are those of the original vocabulary, and
    ``eos_token_id=2`` would make CLIP pool at the largest id of the sequence.
    """
    tokenizer = build_tokenizer()
    ids: dict[str, Any] = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")
    }
    return CLIPTextConfig(
        **ids,
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_LENGTH,
    )
