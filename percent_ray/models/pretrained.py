"""Published weights, read whole or refused: a frozen model with a missing weight would train, and
be trained on, without a word."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from percent_ray.models import hub, weights
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.paths import locate


def load(
    kind: Any,
    folder: str,
    *,
    part: str,
    subfolder: str = "",
    unused: Sequence[str] = (),
    instead: str = "",
    **options: Any,
) -> Any:
    """`kind.from_pretrained` of a diffusers or transformers class, in evaluation mode, from a
    folder of this machine or a hub id.

    `part` names the model in errors; `unused` are beginnings of names that nothing here reads, so
    that the weight may be missing or be left over; `instead` is what else may be set than the
    folder. A folder with one variant of its weights alone is read from that. Raises ValueError, in
    one line, where the folder cannot be read and where a weight is missing, unexpected, quantized
    or of another shape.
    """
    with _in_one_line(f"{part} of {folder}", instead or _whole(kind)):
        place = hub.at_hand(folder, subfolder, weights.needed)
        model, info = kind.from_pretrained(
            str(place),
            variant=weights.check(place, kind),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
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
        f"{len(names)} {what} ({weights.some(names)})"
        for what, keys in problems.items()
        if (names := sorted(key for key in keys if not key.startswith(tuple(unused))))
    ]
    if wrong:
        raise ValueError(
            f"{part} of {folder} does not fit {kind.__name__}: {'; '.join(wrong)}; "
            "give a folder with all of its weights"
        )
    return model.eval()


def read(
    kind: Any, folder: str, *, part: str, subfolder: str = "", file: str = "", instead: str = ""
) -> Any:
    """`kind.from_pretrained` of what has no weights: a config, a tokenizer, an image processor.

    `file` is one without which transformers would take the class's defaults. Raises ValueError, in
    one line, where it cannot be read.
    """
    with _in_one_line(f"{part} of {folder}", instead or _whole(kind)):
        place = hub.at_hand(folder, subfolder, weights.small)
        if not place.is_dir():
            raise ValueError(f"no folder {place.name} is there")
        if file:
            weights.settings(place / file)
        return kind.from_pretrained(str(place), local_files_only=True)


def tokenizer(
    kind: Any, folder: str, *, part: str, vocabulary: int, subfolder: str = "", instead: str = ""
) -> Any:
    """A tokenizer whose text tower knows `vocabulary` tokens.

    Without its files transformers makes an empty one, which reads every word as the same token.
    Raises ValueError, in one line, where it cannot be read or knows far other tokens.
    """
    tokens = read(kind, folder, part=part, subfolder=subfolder, instead=instead)
    # T5's tower has a few rows more than its tokenizer has tokens, to fill a multiple of 128.
    if not 0.9 * vocabulary <= len(tokens) <= vocabulary:
        raise ValueError(
            f"{part} of {folder} knows {len(tokens)} tokens and the text tower {vocabulary}; "
            "give a folder with the tokenizer's files"
        )
    return tokens


def config(kind: Any, folder: str, *, part: str, subfolder: str = "") -> dict[str, Any]:
    """The settings of a diffusers class, with its defaults for those that the file has not. Raises
    ValueError, in one line, where the file cannot be read."""
    with _in_one_line(f"{part} of {folder}", _whole(kind)):
        place = hub.at_hand(folder, subfolder, weights.small)
        settings = weights.settings(place / kind.config_name)
        known = inspect.signature(kind.__init__).parameters.values()
        defaults = {p.name: p.default for p in known if p.default is not p.empty}
        return defaults | settings


def skeleton(kind: Any, folder: str, *, part: str, subfolder: str, dtype: Any) -> Any:
    """The same model on the meta device: every name and shape, and no weight. Raises ValueError, in
    one line, where its config cannot be read."""
    with _in_one_line(f"{part} of {folder}", _whole(kind)), torch.device("meta"):
        place = hub.at_hand(folder, subfolder, weights.small)
        if hasattr(kind, "load_config"):
            model = kind.from_config(weights.settings(place / kind.config_name))
        else:
            config = kind.config_class.from_pretrained(str(place), local_files_only=True)
            model = kind(config)
    return model.to(dtype).eval().requires_grad_(False)


def count(parameters: Iterable[Any]) -> int:
    """Numbers in all of them."""
    return sum(parameter.numel() for parameter in parameters)


def described(folder: str, model: Any, *, subfolder: str = "") -> str:
    """A line for the start of a run: what was loaded, whole."""
    return counted(folder, model) + variants(folder, [subfolder])


def counted(place: str | Path, model: Any) -> str:
    """The same without the variant, of a model from a folder or a file."""
    return f"{type(model).__name__} of {place}, {count(model.parameters()):,} weights, none missing"


def variants(folder: str, subfolders: Iterable[str]) -> str:
    """Which of the models in the `subfolders` were read from a variant of their weights, as the end
    of a line; empty where none was."""
    found: dict[str, list[str]] = {}
    for subfolder in subfolders:
        place = hub.at_hand(locate(folder), subfolder, weights.needed)
        name = weights.variant(file.name for file in place.iterdir())
        if name is not None:
            found.setdefault(name, []).append(subfolder)
    return "".join(
        f"; read from the {name} variant: {', '.join(parts)}".removesuffix(": ")
        for name, parts in found.items()
    )


@contextmanager
def _in_one_line(what: str, instead: str) -> Iterator[None]:
    """Whatever goes wrong with a folder as a ValueError that ends in what to set: `instead`, where
    the error does not say it itself."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):  # no fault of the folder
        raise
    except weights.Refused as error:
        raise ValueError(f"{what}: {error}") from None
    except Exception as error:
        raise ValueError(f"{what}: {first_line(error).rstrip('.')}; {instead}") from error


def _whole(kind: Any) -> str:
    return f"give a folder as {kind.__name__}.save_pretrained writes it"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
