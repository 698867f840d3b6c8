"""A whole diffusers pipeline whose transformer is the trained one."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from percent_ray.export.source import Source, whole
from percent_ray.models import hub, lora, trained
from percent_ray.models.weights import variant

INDEX = "model_index.json"
T5 = ("text_encoder_3", "tokenizer_3")
"""Of an SD3 pipeline: what `model.t5` false does without."""
OTHER_FORMATS = ("*.bin", "*.msgpack", "*.h5", "*.onnx*", "*.ot", "*.ckpt", "*.pt", "*.gguf")
"""Weights beside the safetensors, which nothing here reads."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What `write` has done to the transformer."""

    changed: int
    """Weights that training has changed, of `weights`."""
    weights: int
    left_out: tuple[str, ...]
    """Parts that the base pipeline has and the run did without."""
    dtypes: tuple[torch.dtype, ...]
    """Of the files, the base model's."""
    lost: float
    """Root mean square of what rounding to them has changed, over that of what training has."""


def write(source: Source, folder: Path) -> Merged:
    """Write the pipeline of `model.path` into an empty folder, with the trained transformer in its
    place: the adapter folded in, or every weight. A copy, without links, in the base's dtypes.

    Without `model.t5` SD3's third text encoder is left out. Raises ValueError, in one line, where
    the base pipeline is not there, lacks a part, or is of another model.
    """
    base = _base(source.model.folder)
    index = json.loads((base / INDEX).read_text())
    left_out = () if source.model.t5 else tuple(name for name in T5 if name in _parts(index))
    index |= {name: [None, None] for name in left_out}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for text in base.glob("LICENSE*"):
        shutil.copyfile(text, folder / text.name)
    for part in _parts(index):
        present = base / part
        if not present.is_dir():
            raise ValueError(f"model.path: {part} of {base} is not there; give the whole pipeline")
        if (present / "config.json").is_file() and not any(present.glob("*.safetensors")):
            raise ValueError(f"model.path: {part} of {base} has no safetensors; give one that has")
        if part != "transformer":
            # Copies what a link leads to: a hub's cache is made of links.
            ignored = shutil.ignore_patterns(*OTHER_FORMATS)
            shutil.copytree(present, folder / part, ignore=ignored)
    changes = _transformer(source, base / "transformer", folder / "transformer")
    return changes.summary(base, left_out)


def _base(path: str) -> Path:
    """The pipeline's folder; of a hub id, which may have to be fetched, that in its cache."""
    if Path(path).is_dir():
        return Path(path)
    from diffusers import DiffusionPipeline

    try:
        repo, revision = hub.split(path)
        return Path(DiffusionPipeline.download(repo, revision=revision, use_safetensors=True))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.path: {path} is neither cached nor can be had: {reason}") from None


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Raises ValueError for one that is no folder's name: it would be written elsewhere."""
    parts = [n for n, entry in index.items() if isinstance(entry, list) and entry[0] is not None]
    for part in parts:
        _check_name(part, INDEX)
    return parts


def _check_name(name: str, file: str) -> None:
    if Path(name).name != name or name in ("", "..", "."):
        raise ValueError(f"model.path: {file} names {name!r}, which leads elsewhere; mend it")


def _transformer(source: Source, base: Path, folder: Path) -> "_Changes":
    """File by file, so that no more than one is in memory."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    changes = _Changes(source)
    folder.mkdir()
    shutil.copyfile(base / "config.json", folder / "config.json")
    for path in _files(base):
        if path.suffix == ".json":
            shutil.copyfile(path, folder / path.name)
            continue
        with whole(base), safe_open(path, framework="pt") as file:
            header = file.metadata()
            before = load_file(path)
        weights = {name: changes(name, weight) for name, weight in before.items()}
        save_file(weights, folder / path.name, metadata=header)
    return changes


def _files(base: Path) -> list[Path]:
    """The one safetensors file of a model's folder, or its index and all that this names."""
    index = base / trained.INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        for name in names:
            _check_name(name, index.name)
        files = [index, *(base / name for name in names)]
    else:
        files = [base / trained.WEIGHTS.format(suffix="")]
    missing = [path.name for path in files if not path.is_file()]
    if missing and (only := variant(path.name for path in base.iterdir())):
        raise ValueError(
            f"model.path: transformer of {base.parent} has its weights as the {only} variant only, "
            f"and a merged pipeline has none; load it with diffusers' variant={only!r}, "
            "save_pretrained it, and set model.path to that"
        )
    if missing:
        raise ValueError(
            f"model.path: transformer of {base.parent} lacks {', '.join(missing)}; "
            "give a folder with all of its weights"
        )
    return files


class _Changes:
    """The base model's weights with what training has changed."""

    def __init__(self, source: Source) -> None:
        self._trained = source.weights
        self._scale = (
            source.model.lora_alpha / source.model.lora_rank if source.model.lora_rank else None
        )
        self._unused = set(self._trained)
        self._changed = self._seen = 0
        self._dtypes: set[torch.dtype] = set()
        self._gained = self._lost = 0.0

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """The weight `name` after training, in the dtype of `weight`, the base's."""
        self._seen += 1
        wanted = self._after(name, weight)
        if wanted is None:
            return weight
        rounded = wanted.to(weight.dtype)
        self._changed += not torch.equal(wanted, weight.float())
        self._dtypes.add(weight.dtype)
        self._gained += float((wanted - weight.float()).square().sum(dtype=torch.float64))
        self._lost += float((rounded.float() - wanted).square().sum(dtype=torch.float64))
        return rounded

    def _after(self, name: str, weight: Tensor) -> Tensor | None:
        """In float32: W + alpha / r B A, or what was trained; None for a weight that was not."""
        if self._scale is None:
            return self._take(name, weight.shape)
        module = name.removesuffix(".weight")
        a, b = (f"{module}.lora_{half}.{lora.ADAPTER}.weight" for half in "AB")
        if a not in self._trained:
            return None
        down, up = self._take(a), self._take(b)
        if (len(up), down.shape[1]) != weight.shape:
            raise ValueError(_other(name, (len(up), down.shape[1]), weight.shape))
        return weight.float() + self._scale * (up @ down)

    def _take(self, name: str, shape: torch.Size | None = None) -> Any:
        trained = self._trained.get(name)
        if trained is None:
            return None
        if shape is not None and trained.shape != shape:
            raise ValueError(_other(name, trained.shape, shape))
        self._unused.discard(name)
        return trained.float()

    def summary(self, base: Path, left_out: tuple[str, ...]) -> Merged:
        """Raises ValueError where a trained weight has no place in the base model."""
        if self._unused:
            raise ValueError(
                f"model.path: transformer of {base} has no place for {len(self._unused)} of "
                f"{len(self._trained)} trained weights ({min(self._unused)}); give the pipeline "
                "that was trained"
            )
        lost = (self._lost / self._gained) ** 0.5 if self._gained else 0.0
        dtypes = tuple(sorted(self._dtypes, key=str))
        return Merged(self._changed, self._seen, left_out, dtypes, lost)


def _other(name: str, trained: Any, base: Any) -> str:
    return (
        f"model.path: {name} of its transformer is {list(base)}, the trained one {list(trained)}; "
        "give the pipeline that was trained"
    )
