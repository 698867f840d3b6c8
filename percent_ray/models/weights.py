"""The weight files of a folder, looked at before they are read: which there are, of which variant,
and whether they are what this package can train from."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SHOWN = 3
"""Names that an error gives; it counts the rest."""
SMALL = (".json", ".txt", ".model", ".jinja")
"""Endings of the files that a folder has beside weights: configs and tokenizers."""
READABLE = ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL")
"""Types of tensors, as safetensors spells them, in weights that are not quantized; the whole
numbers are of buffers."""


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

    Raises Refused for weights that are not all there, pickled, quantized, or inside LoRA layers,
    and for several variants; ValueError for what else is not there.
    """
    quantization = settings(folder / "config.json").get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise Refused(_quantized(str(method or quantization)))
    names = sorted(file.name for file in folder.iterdir())
    pickles = [n for n in names if n.endswith(".bin") and not n.startswith("open_clip_")]
    if pickles and not any(map(_FILE.fullmatch, names)):
        raise Refused(_convert(folder, pickles[0], kind))
    chosen = variant(names)
    files = {name for name in names if (m := _FILE.fullmatch(name)) and m["variant"] == chosen}
    _check_shards(folder, names, files, chosen)
    for name in sorted(files):
        _check_tensors(folder / name)
    return chosen


def settings(file: Path) -> dict[str, Any]:
    """What a JSON file of settings holds. Raises ValueError where it cannot be read."""
    if not file.parent.is_dir():
        raise ValueError(f"no folder {file.parent.name} is there")
    if not file.is_file():
        raise ValueError(f"has no {file.name}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"its {file.name} is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"its {file.name} holds no settings")
    return found


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
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        names: list[str] = list(tensors.keys())
        wrapped = [name for name in names if ".base_layer." in name]
        if wrapped:
            raise Refused(
                f"{file.name} has {len(wrapped)} weights inside LoRA layers of peft "
                f"({some(wrapped)}); give a folder saved after peft's merge_and_unload()"
            )
        kinds = {tensors.get_slice(name).get_dtype() for name in names} - {*READABLE}
    if kinds:
        raise Refused(f"{file.name}: {_quantized(', '.join(sorted(kinds)))}")


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
