"""Published weights, read whole or refused: a frozen model with a missing weight would train, and
be trained on, without a word."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError

from percent_ray.recipe.errors import first_line

SHOWN = 3
"""Weights that an error names; it counts the rest."""


def load(kind: Any, folder: str, *, part: str, unused: Sequence[str] = (), **options: Any) -> Any:
    """`kind.from_pretrained(folder)` of a diffusers or transformers class, in evaluation mode.

    `part` names the model in errors; `unused` are beginnings of names that nothing here reads, so
    that the weight may be missing or be left over. Raises ValueError, in one line, where the folder
    cannot be read and where a weight is missing, unexpected or of another shape.
    """
    with _in_one_line(f"{part} of {folder}"):
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    shapes = {
        name: f"{name} {list(there)}, needs {list(here)}"
        for name, there, here in info["mismatched_keys"]
    }
    # A buffer is computed, not learned. Older files have some, also under modules where a newer
    # version no longer has them.
    buffers = {_last(name) for name, _ in model.named_buffers()}
    problems = {
        "missing": set(info["missing_keys"]) - shapes.keys(),
        "unexpected": {key for key in info["unexpected_keys"] if _last(key) not in buffers},
        "of another shape": shapes.values(),
    }
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, keys in problems.items()
        if (names := sorted(key for key in keys if not key.startswith(tuple(unused))))
    ]
    if wrong:
        raise ValueError(
            f"{part} of {folder} does not fit {kind.__name__}: {'; '.join(wrong)}; "
            "give a folder with all of its weights"
        )
    return model.eval()


def tokenizer(kind: Any, folder: str, *, part: str, vocabulary: int, **options: Any) -> Any:
    """`kind.from_pretrained(folder)` of a tokenizer whose text tower knows `vocabulary` tokens.

    Without its files transformers makes an empty one, which reads every word as the same token.
    Raises ValueError, in one line, where it cannot be read or knows far other tokens.
    """
    with _in_one_line(f"{part} of {folder}"):
        read = kind.from_pretrained(folder, **options)
    # T5's tower has a few rows more than its tokenizer has tokens, to fill a multiple of 128.
    if not 0.9 * vocabulary <= len(read) <= vocabulary:
        raise ValueError(
            f"{part} of {folder} knows {len(read)} tokens and the text tower {vocabulary}; "
            "give a folder with the tokenizer's files"
        )
    return read


def config(kind: Any, folder: str, *, part: str, **options: Any) -> dict[str, Any]:
    """`kind.load_config(folder)` of a diffusers class. Raises ValueError, in one line, where that
    cannot be read."""
    with _in_one_line(f"{part} of {folder}"):
        return dict(kind.load_config(folder, **options))


def skeleton(kind: Any, folder: str, *, part: str, subfolder: str, dtype: Any) -> Any:
    """The same model on the meta device: every name and shape, and no weight. Raises ValueError, in
    one line, where its config cannot be read."""
    import torch

    with _in_one_line(f"{part} of {folder}"), torch.device("meta"):
        if hasattr(kind, "load_config"):
            model = kind.from_config(kind.load_config(folder, subfolder=subfolder))
        else:
            model = kind(kind.config_class.from_pretrained(folder, subfolder=subfolder))
    return model.to(dtype).eval().requires_grad_(False)


def count(parameters: Iterable[Any]) -> int:
    """Numbers in all of them."""
    return sum(parameter.numel() for parameter in parameters)


def described(folder: str, model: Any) -> str:
    """A line for the start of a run: what was loaded, whole."""
    parameters = count(model.parameters())
    return f"{type(model).__name__} of {folder}, {parameters:,} weights, none missing"


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """What loaders raise for a file that is missing, cut short or no such file, as a ValueError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{what}: {first_line(error)}") from None


def _last(name: str) -> str:
    return name.rpartition(".")[2]
