"""Published weights, read whole or refused: a frozen model with a missing weight would train, and
be trained on, without a word."""

from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 3
"""Weights that an error names; it counts the rest."""


def load(kind: Any, folder: str, *, part: str, unused: Sequence[str] = (), **options: Any) -> Any:
    """`kind.from_pretrained(folder)` of a diffusers or transformers class, in evaluation mode.

    `part` names the model in errors; `unused` are beginnings of names that nothing here reads, so
    that the weight may be missing or be left over. Raises ValueError, in one line, where the folder
    cannot be read and where a weight is missing, unexpected or of another shape.
    """
    try:
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{part} of {folder}: {_first_line(error)}") from None
    shapes = {
        name: f"{name} {list(there)}, needs {list(here)}"
        for name, there, here in info["mismatched_keys"]
    }
    problems = {
        "missing": set(info["missing_keys"]) - shapes.keys(),
        # A buffer is computed, not learned; older files have some of them.
        "unexpected": set(info["unexpected_keys"]) - {name for name, _ in model.named_buffers()},
        "of another shape": shapes.values(),
    }
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, keys in problems.items()
        if (names := sorted(key for key in keys if not key.startswith(tuple(unused))))
    ]
    if wrong:
        raise ValueError(
            f"{part} of {folder} has weights that do not fit {kind.__name__}: {'; '.join(wrong)}; "
            "give a folder with all of its weights"
        )
    return model.eval()


def tokenizer(kind: Any, folder: str, *, part: str, vocabulary: int, **options: Any) -> Any:
    """`kind.from_pretrained(folder)` of a tokenizer whose text tower knows `vocabulary` tokens.

    Without its files transformers makes an empty one, which reads every word as the same token.
    Raises ValueError, in one line, where it cannot be read or knows far other tokens.
    """
    try:
        read = kind.from_pretrained(folder, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{part} of {folder}: {_first_line(error)}") from None
    # T5's tower has a few rows more than its tokenizer has tokens, to fill a multiple of 128.
    if not 0.9 * vocabulary <= len(read) <= vocabulary:
        raise ValueError(
            f"{part} of {folder} knows {len(read)} tokens and the text tower {vocabulary}; "
            "give a folder with the tokenizer's files"
        )
    return read


def count(parameters: Iterable[Any]) -> int:
    """Numbers in all of them."""
    return sum(parameter.numel() for parameter in parameters)


def described(folder: str, model: Any) -> str:
    """A line for the start of a run: what was loaded, whole."""
    parameters = count(model.parameters())
    return f"{type(model).__name__} of {folder}, {parameters:,} weights, none missing"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
