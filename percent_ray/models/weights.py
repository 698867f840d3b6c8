"""The weight files of a folder, looked at before they are read: which there are, of which variant,
and whether they are what this package can train from."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 3
"""Names that an error gives; it counts the rest."""
SMALL = (".json", ".txt", ".model", ".jinja")
"""Endings of the files that a folder has beside weights: configs and tokenizers."""
WHOLE = ("I64", "I32", "BOOL")
"""Types of tensors, as safetensors spells them, that buffers have."""
READABLE = ("F64", "F32", "F16", "BF16", *WHOLE)
"""Those in weights that are not quantized."""
LEARNED = (".weight", ".bias")
"""Endings of the names of tensors that are no buffers."""
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""


class Refused(ValueError):
    """What is wrong with a model's files and what to set, to stand after the folder's name."""


_FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)"
    r"(?:-\d+-of-\d+)?(?:\.(?P<variant>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
)
_INDEX = re.compile(
    r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>[^.]+))?\.json"
)


def small(names: Sequence[str]) -> list[str]:
    """The files without weights."""
    return [name for name in names if name.endswith(SMALL)]


def variant(names: Iterable[str]) -> str | None:
    """Of the safetensors files among `names` the variant to read: None where there is a plain
    file, else the one that there is, such as fp16.

    Raises Refused where there are several variants and no plain file, and ValueError where there
    are no weights.
    """
    names = list(names)
    found = {match["variant"] for name in names if (match := _FILE.fullmatch(name))}
    if None in found:
        return None
    if len(found) > 1:
        raise Refused(
            f"has its weights only as {' and '.join(sorted(map(str, found)))} variants; give a "
            "folder with the one to read"
        )
    if not found and any(name.endswith(".gguf") for name in names):
        raise Refused(_quantized("GGUF"))
    if not found:
        raise ValueError("has no model.safetensors or diffusion_pytorch_model.safetensors")
    return found.pop()


def needed(names: Sequence[str]) -> list[str]:
    """What a model is read from: the small files and the weights of its `variant`; `.bin` files
    where there are no others."""
    if not any(map(_FILE.fullmatch, names)):
        return [*small(names), *(name for name in names if name.endswith((".bin", ".gguf")))]
    chosen = variant(names)
    return [*small(names), *(n for n in names if (m := _FILE.fullmatch(n)) and m[1] == chosen)]


def check(folder: Path, kind: type) -> str | None:
    """The variant to read of a folder with a model of the class `kind`.

    Raises Refused for a config of another class, for weights that are not all there, torn, pickled,
    quantized, of whole numbers, or inside LoRA layers, and for several variants; ValueError for
    what else is not there.
    """
    config = settings(folder / "config.json")
    of_class(config, kind, "config.json")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise Refused(_quantized(str(method or quantization)))
    names = sorted(file.name for file in folder.iterdir())
    pickles = [n for n in names if n.endswith(".bin") and not n.startswith("open_clip_")]
    if pickles and not any(map(_FILE.fullmatch, names)):
        raise Refused(_convert(folder, pickles[0], kind))
    chosen = variant(names)
    files = read_from(names, chosen)
    _check_names(files, names, kind)
    _check_shards(folder, names, {*files}, chosen)
    for name in files:
        _check_tensors(folder / name)
    return chosen


def read_from(names: Iterable[str], chosen: str | None) -> list[str]:
    """The weight files among `names` of a variant, in order."""
    found = (_FILE.fullmatch(name) for name in names)
    return sorted(match[0] for match in found if match and match["variant"] == chosen)


def settings(file: Path) -> dict[str, Any]:
    """What a JSON file of settings holds. Raises ValueError where it cannot be read."""
    if not file.parent.is_dir():
        raise ValueError(f"no folder {file.parent.name} is there")
    text = content(file)
    try:
        found = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ValueError(f"its {file.name} is no JSON{_instead(text)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"its {file.name} holds no settings")
    return found


def content(file: Path) -> bytes:
    """The bytes of a small file. Raises ValueError where it is not there or cannot be read."""
    if not file.is_file():
        raise ValueError(f"has no {file.name}{why_not(file)}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"its {file.name} cannot be read ({error.strerror})") from None


def of_class(settings: Mapping[str, Any], kind: type, file: str) -> None:
    """Raises Refused where the `settings` in `file` are of a model of another class than `kind`: a
    diffusers class by its name, one of transformers by its type of model."""
    wanted = getattr(getattr(kind, "config_class", None), "model_type", "")
    if hasattr(kind, "load_config"):
        found = settings.get("_class_name")
        known = found == kind.__name__
    else:
        # A whole model's settings have those of its towers: clip those of clip_text_model.
        found = settings.get("model_type", wanted)
        known = not wanted or (isinstance(found, str) and wanted.startswith(found))
    if not known:
        raise Refused(f"its {file} is of class {found}, not {kind.__name__}; give a folder of one")


def finite(model: nn.Module, where: str) -> None:
    """Raises Refused, that names the files `where` its weights were read from, for weights that are
    not finite: they would train, or judge, without a word."""
    state = model.state_dict()
    if wrong := not_finite(state):
        half = any(tensor.dtype == torch.float16 for tensor in state.values())
        raise Refused(
            f"{len(wrong)} of the weights of {where} are NaN or infinite ({some(wrong)}); give a "
            f"whole one{', or set model.dtype to bfloat16' if half else ''}"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those with a number that is not finite."""
    # One pass without a copy: both ends are NaN where one number is.
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not tensor.is_meta
        and not torch.stack(torch.aminmax(tensor.detach())).isfinite().all()
    ]


def _check_names(files: Sequence[str], names: Sequence[str], kind: type) -> None:
    """Raises Refused for files that the library of `kind` would not look for."""
    stem = "diffusion_pytorch_model" if hasattr(kind, "load_config") else "model"
    if other := [name for name in files if not name.startswith(stem)]:
        raise Refused(f"has {other[0]}, and {kind.__name__} reads {stem}.safetensors; rename it")
    shards = [name for name in files if re.search(r"-\d+-of-\d+", name)]
    if shards and len(shards) == len(files) and not any(map(_INDEX.fullmatch, names)):
        raise Refused(
            f"has {some(shards)} and no {stem}.safetensors.index.json, which says what is in them; "
            "give a folder with it"
        )


def _check_shards(folder: Path, names: Sequence[str], files: set[str], chosen: str | None) -> None:
    for name in names:
        match = _INDEX.fullmatch(name)
        if match is None or match["variant"] != chosen:
            continue
        try:
            shards = set(settings(folder / name)["weight_map"].values())
        except (KeyError, AttributeError, TypeError):
            raise ValueError(f"its {name} is no index of weight files") from None
        if gone := sorted(shards - files):
            raise Refused(
                f"{len(gone)} of {len(shards)} weight files are missing ({some(gone)}); "
                "give a folder with all of them"
            )


def _check_tensors(file: Path) -> None:
    """Raises Refused, or ValueError where a file is not there or no whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"its {file.name} is no file{why_not(file)}")
    try:
        with safe_open(file, framework="pt") as tensors:
            names: list[str] = list(tensors.keys())
            kinds = {name: tensors.get_slice(name).get_dtype() for name in names}
    except (SafetensorError, OSError) as error:
        with file.open("rb") as start:
            instead = _instead(start.read(64))
        why = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(
            f"its {file.name} is torn or no safetensors file: {file.stat().st_size:,} bytes, "
            f"{type(error).__name__}: {why}{instead}"
        ) from None
    _check_kinds(file.name, kinds)


def _check_kinds(file: str, kinds: Mapping[str, str]) -> None:
    """Raises Refused for tensors, by name, of types that nothing here can train from."""
    wrapped = [name for name in kinds if ".base_layer." in name]
    if wrapped:
        raise Refused(
            f"{file} has {len(wrapped)} weights inside LoRA layers of peft "
            f"({some(wrapped)}); give a folder saved after peft's merge_and_unload()"
        )
    if others := {*kinds.values()} - {*READABLE}:
        raise Refused(f"{file}: {_quantized(', '.join(sorted(others)))}")
    if whole := [n for n, kind in kinds.items() if kind in WHOLE and n.endswith(LEARNED)]:
        raise Refused(
            f"{file} has {len(whole)} weights of whole numbers ({some(whole)}); give a folder of "
            "unquantized weights"
        )


def why_not(file: Path) -> str:
    """Why what is there is no file."""
    if file.is_symlink():
        return f" (a link to {file.readlink()}, which is not there)"
    return " (a folder)" if file.is_dir() else ""


def _instead(content: bytes) -> str:
    """What a damaged file is, where that can be seen."""
    if not content:
        return " (it is empty)"
    if content.startswith(POINTER):
        return " (a pointer of Git LFS; fetch the file by `git lfs pull`)"
    return " (a web page)" if content.lstrip().lower().startswith((b"<html", b"<!doc")) else ""


def _quantized(how: str) -> str:
    return f"is quantized ({how}), which is not supported; give a folder of unquantized weights"


def _convert(folder: Path, pickle: str, kind: type) -> str:
    """What to do with a folder that has only pickled weights."""
    library = kind.__module__.partition(".")[0]
    variants = re.fullmatch(r".*?\.([^.-]+)(?:-\d+-of-\d+)?\.bin", pickle)
    option = f", variant={variants[1]!r}" if variants else ""
    name = str(folder)
    return (
        f'has only pickled weights ({pickle}); convert them: python -c "from {library} import '
        f"{kind.__name__} as M; M.from_pretrained({name!r}, use_safetensors=False{option})"
        f'.save_pretrained({name!r})"'
    )


def some(names: Sequence[str]) -> str:
    """The first few, and whether there are more."""
    return f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
