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

FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Tokenizer": (
        ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"),
        ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    ),
    "ImageProcessor": (("preprocessor_config.json", "processor_config.json"), ()),
    "Config": (("config.json",), ()),
    "Scheduler": (("scheduler_config.json",), ()),
}
"""By the end of a class's name, the files of which it needs one, and others that it reads."""


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
        variant = weights.check(place, kind)
        # Every file of weights can be read: what goes wrong now is for the settings.
        with _of_file("config.json", kind):
            model, info = kind.from_pretrained(
                str(place),
                variant=variant,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                **options,
            )
        where = weights.some(weights.read_from((file.name for file in place.iterdir()), variant))
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
            f"{part} of {folder} does not fit {kind.__name__}: {'; '.join(wrong)}: {where} is not "
            "what config.json describes; give a folder with all of its weights"
        )
    with _in_one_line(f"{part} of {folder}", instead or _whole(kind)):
        weights.finite(model, where)
    return model.eval()


def read(kind: Any, folder: str, *, part: str, subfolder: str = "", instead: str = "") -> Any:
    """`kind.from_pretrained` of what has no weights: a config, a tokenizer, an image processor.

    Raises ValueError, in one line, where it cannot be read: without its files (`FILES`)
    transformers would take the class's defaults.
    """
    with _in_one_line(f"{part} of {folder}", instead or _whole(kind)):
        place = hub.at_hand(folder, subfolder, weights.small)
        if not place.is_dir():
            raise ValueError(f"no folder {place.name} is there")
        there = _check_small(place, kind)
        with _of_file(" and ".join(there), kind):
            return kind.from_pretrained(str(place), local_files_only=True)


def _check_small(place: Path, kind: Any) -> list[str]:
    """The files of a folder that a class without weights is read from. Raises ValueError for one
    that is damaged, and where there is none of those that it needs."""
    name = kind.__name__.removesuffix("Fast")
    needs, beside = next((files for end, files in FILES.items() if name.endswith(end)), ((), ()))
    there = [file for file in (*needs, *beside) if (place / file).is_file()]
    for file in there:
        if file.endswith(".json"):
            weights.settings(place / file)
    if needs and not {*there} & {*needs}:
        why = "".join(weights.why_not(place / file) for file in needs)
        which = f"no {needs[0]}" if len(needs) == 1 else f"none of {', '.join(needs)}"
        raise ValueError(f"has {which}{why}")
    if {"vocab.json"} == {*there} & {"vocab.json", "tokenizer.json", "merges.txt"}:
        weights.content(place / "merges.txt")  # without it every word is cut into letters
    return there


def image_processor(folder: str, *, part: str = "image processor") -> Any:
    """The image processor of a folder or hub id, tried on a grey picture. Raises ValueError, in one
    line, where it cannot be read and where it makes no finite pixels."""
    from transformers import AutoImageProcessor

    processor = read(AutoImageProcessor, folder, part=part)
    grey = [torch.full((3, 32, 32), 128, dtype=torch.uint8)]
    try:
        asked = {"return_tensors": "pt", "input_data_format": "channels_first"}
        whole = bool(processor(grey, **asked).pixel_values.isfinite().all())
        why = "pixels that are not finite"
    except Exception as error:  # of settings of other types and ranges
        whole, why = False, first_line(error)
    if not whole:
        files = " or ".join(FILES["ImageProcessor"][0])
        raise ValueError(
            f"{part} of {folder}: its {files} makes no picture for the model ({why}); "
            f"{_whole(processor.__class__)}"
        )
    return processor


def tokenizer(
    kind: Any,
    folder: str,
    *,
    part: str,
    vocabulary: int,
    end: int | None = None,
    longest: int | None = None,
    subfolder: str = "",
    instead: str = "",
) -> Any:
    """A tokenizer whose text tower knows `vocabulary` tokens, is read at the token `end` (CLIP's; 2
    is the highest one of a text), and takes texts of `longest` tokens where its tokenizer must say
    so.

    Raises ValueError, in one line, where it cannot be read or is one of another tower.
    """
    tokens = read(kind, folder, part=part, subfolder=subfolder, instead=instead)
    where = f"{part} of {folder}"
    # T5's tower has a few rows more than its tokenizer has tokens, to fill a multiple of 128.
    if not 0.9 * vocabulary <= len(tokens) <= vocabulary:
        raise ValueError(
            f"{where} knows {len(tokens)} tokens and the text tower {vocabulary}; "
            "give a folder with the tokenizer's files"
        )
    highest = max(tokens.get_vocab().values())
    if end is not None and tokens.eos_token_id != (highest if end == 2 else end):
        raise ValueError(
            f"{where} ends a text with token {tokens.eos_token_id} and the text tower is read at "
            f"{highest if end == 2 else end}; give the tokenizer.json and config.json of one model"
        )
    most = tokens.model_max_length
    if not isinstance(most, int | float) or not 2 < most <= (longest or most):
        raise ValueError(
            f"{where}: its tokenizer_config.json gives model_max_length {_short(most)}, and the "
            f"text tower takes {longest or 'a number above 2'}; set it to that"
        )
    return tokens


def config(kind: Any, folder: str, *, part: str, subfolder: str = "") -> dict[str, Any]:
    """The settings of a diffusers class, with its defaults for those that the file has not. Raises
    ValueError, in one line, where the file cannot be read or is of another class than a model's
    `kind`; a pipeline may be any."""
    with _in_one_line(f"{part} of {folder}", _whole(kind)):
        place = hub.at_hand(folder, subfolder, weights.small)
        settings = weights.settings(place / kind.config_name)
        if subfolder or kind.config_name == "config.json":
            weights.of_class(settings, kind, kind.config_name)
        known = inspect.signature(kind.__init__).parameters.values()
        defaults = {p.name: p.default for p in known if p.default is not p.empty}
        return defaults | settings


def skeleton(kind: Any, folder: str, *, part: str, subfolder: str, dtype: Any) -> Any:
    """The same model on the meta device: every name and shape, and no weight. Raises ValueError, in
    one line, where its config cannot be read."""
    with _in_one_line(f"{part} of {folder}", _whole(kind)), torch.device("meta"):
        place = hub.at_hand(folder, subfolder, weights.small)
        settings = weights.settings(place / "config.json")
        weights.of_class(settings, kind, "config.json")
        with _of_file("config.json", kind):
            if hasattr(kind, "load_config"):
                model = kind.from_config(settings)
            elif hasattr(kind, "config_class"):
                config = kind.config_class.from_pretrained(str(place), local_files_only=True)
                model = kind(config)
            else:
                from transformers import AutoConfig  # of an AutoModel

                config = AutoConfig.from_pretrained(str(place), local_files_only=True)
                model = kind.from_config(config)
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
    """Which commit of the hub the models in the `subfolders` are of, and which were read from a
    variant of their weights, as the end of a line; empty where there is nothing of this."""
    found: dict[str, list[str]] = {}
    commits: dict[str, None] = {}
    for subfolder in subfolders:
        place = hub.at_hand(locate(folder), subfolder, weights.needed)
        commits |= dict.fromkeys(hub.commit(place))
        name = weights.variant(file.name for file in place.iterdir())
        if name is not None:
            found.setdefault(name, []).append(subfolder)
    return "".join(f"; commit {commit} of the hub" for commit in commits) + "".join(
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


@contextmanager
def _of_file(file: str, kind: Any) -> Iterator[None]:
    """What goes wrong with making a `kind` as the fault of `file`."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):  # no fault of the folder
        raise
    except Exception as error:
        why = first_line(error).rstrip(".")
        raise ValueError(f"its {file} makes no {kind.__name__} ({why})") from error


def _short(value: object) -> str:
    """A value that a message can hold: a tokenizer without a limit has one of 30 digits."""
    return f"{value:.3g}" if isinstance(value, int | float) else repr(value)[:40]


def _whole(kind: Any) -> str:
    return f"give a folder as {kind.__name__}.save_pretrained writes it"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
