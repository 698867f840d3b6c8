"""Rows that are pipelines of diffusers: any text-to-image class, loaded whole or refused."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from percent_ray.evaluation.generate import Pictures
from percent_ray.flow import noise
from percent_ray.models import hub, pretrained, weights
from percent_ray.recipe import bounds
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.paths import expanded, locate, locate_pipeline
from percent_ray.recipe.section import Section
from percent_ray.types import Prompt

INDEX = "model_index.json"
OURS = {
    "prompt": "the prompts' file",
    "generator": "seed",
    "num_images_per_prompt": "images",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "true_cfg_scale": "guidance",
    "height": "resolution",
    "width": "resolution",
    "output_type": "nothing",
    "return_dict": "nothing",
}
"""Arguments of a pipeline's call that a row sets otherwise, or not at all."""
LORA = "row"
"""Name of the adapter."""


class PipelineRow(Section):
    """A pipeline, maybe with a LoRA."""

    pipeline: bounds.Text
    """Folder or hub id."""
    lora: Annotated[str, Field(max_length=1000)] = ""
    """A safetensors file of a LoRA, or the folder that `save_lora_weights` has written."""
    lora_scale: Annotated[float, Field(ge=-100, le=100)] = 1.0
    """Of the LoRA's weights; a slider's may be negative."""
    components: dict[str, bounds.Text] = {}  # noqa: RUF012 pydantic copies it
    """Folders or hub ids of components that the pipeline's folder has not: HiDream's text_encoder_4
    and tokenizer_4 are Llama's."""
    steps: bounds.Steps | None = None
    """The pipeline's own default where not set; so are the next two."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """guidance_scale, or true_cfg_scale of a class that has only that (Qwen-Image)."""
    resolution: bounds.Pixels | tuple[bounds.Pixels, bounds.Pixels] | None = None
    """Of the pictures, in pixels: both sides, or [height, width]."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of all weights."""
    batch_size: bounds.Batch = 4
    """Pictures in one call."""
    arguments: dict[str, Any] = {}  # noqa: RUF012
    """More arguments of the pipeline's call, such as negative_prompt or max_sequence_length."""


def find(row: PipelineRow) -> None:
    """Raises ValueError, in one line, where a folder or file of a row is not there."""
    locate_pipeline(row.pipeline)
    for name, path in row.components.items():
        try:
            locate(path)
        except ValueError as error:
            raise ValueError(f"components.{name}: {error}") from None
    if row.lora:
        _lora_file(row.lora)


class PipelineSource:
    """A `Source` of one row. Raises ValueError, in one line, for a pipeline that is none of text to
    images, a missing or unexpected weight, and a LoRA that does not fit."""

    def __init__(self, row: PipelineRow, *, device: torch.device) -> None:
        folder = locate(row.pipeline)
        place = hub.at_hand(folder, "", lambda names: [n for n in names if n == INDEX])
        try:
            index = weights.settings(place / INDEX)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}; give a folder or hub id of a pipeline") from None
        self._row = row
        self._kind = _class(folder, index)
        self._call = _arguments(row, self._kind)
        self._asked = (self._call["height"], self._call["width"]) if row.resolution else None
        self._absent = _absent(self._kind, index, row)
        self._pipe = _load(row, folder, self._kind, index, self._absent).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        self._layers = _add_lora(self._pipe, row) if row.lora else 0

    @torch.no_grad()
    def draw(self, prompt: Prompt, number: int, *, images: int, seed: int) -> Pictures:
        """As `Source.draw`. Raises ValueError for pictures that are not finite and for those that a
        safety checker has blacked out."""
        parts: list[UInt8[Tensor, "n 3 H W"]] = []
        for first in range(0, images, self._row.batch_size):
            chosen = range(first, min(first + self._row.batch_size, images))
            made = self._pipe(
                prompt=prompt.text,
                num_images_per_prompt=len(chosen),
                generator=[noise.generator("evaluation", seed, number, k) for k in chosen],
                output_type="pt",
                **self._call,
            )
            pixels = made.images.float().cpu()
            if bad := int((~pixels.flatten(1).isfinite().all(1)).sum()):
                raise ValueError(f"{bad} of {len(chosen)} pictures are not finite; set dtype")
            if self._asked and tuple(pixels.shape[-2:]) != self._asked:
                asked, drawn = (f"{h} x {w}" for h, w in (self._asked, pixels.shape[-2:]))
                raise ValueError(
                    f"resolution {asked}: {self._kind.__name__} draws {drawn} whatever is asked, "
                    "or asks for other multiples; set what it draws, or leave it out"
                )
            if black := sum(getattr(made, "nsfw_content_detected", None) or []):
                raise ValueError(f"the safety checker blacked out {black} of {len(chosen)}")
            parts.append((255 * pixels.clamp(0, 1)).round().to(torch.uint8))
        return Pictures(prompt, torch.cat(parts))

    def describe(self) -> str:
        """As `Source.describe`."""
        row = self._row
        modules = [m for m in self._pipe.components.values() if isinstance(m, torch.nn.Module)]
        count = sum(pretrained.count(module.parameters()) for module in modules)
        defaults = {n: p.default for n, p in _parameters(self._kind).items()}
        own = {n: defaults.get(n) for n in ("num_inference_steps", "guidance_scale")} | self._call
        said = ", ".join(f"{name} {value}" for name, value in own.items() if value is not None)
        without = f"; without {', '.join(self._absent)}"
        lora = f"; LoRA {row.lora} x {row.lora_scale:g} on {self._layers} layers"
        return (
            f"{self._kind.__name__} of {row.pipeline}, {count:,} weights in {row.dtype}, none "
            f"missing; {said}{lora if row.lora else ''}{without if self._absent else ''}"
        )


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__call__).parameters


def _class(folder: str, index: Mapping[str, Any]) -> Any:
    """The pipeline's class, of diffusers alone: no code comes with weights."""
    import diffusers

    name = index.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (inspect.isclass(kind) and hasattr(kind, "from_pretrained")):
        raise ValueError(f"{folder} is a {name}, which this version of diffusers does not have")
    if needs := getattr(kind, "_backends", None):  # a stand-in for what cannot be imported
        raise ValueError(f"{folder} is a {name}, which needs {', '.join(needs)} installed")
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    takes = _parameters(kind).keys()
    drawing = kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() or "image" not in takes
    # Sound has no images of a prompt, solid bodies have a frame size, film has frames.
    lacks = {"prompt", "num_images_per_prompt"} - takes
    if lacks or not drawing or {"num_frames", "video", "frame_size"} & takes:
        raise ValueError(f"{folder} is a {name}, which does not draw images of a text")
    return kind


def _arguments(row: PipelineRow, kind: type) -> dict[str, Any]:
    """What a row asks of the pipeline's call, beside what differs from picture to picture."""
    takes = _parameters(kind)
    for name in row.arguments:
        if name in OURS:
            raise ValueError(f"arguments.{name}: is set by {OURS[name]}; leave it out")
        if name not in takes:
            known = sorted(takes.keys() - OURS.keys() - {"self"})
            raise ValueError(f"arguments.{name}: {kind.__name__} has {', '.join(known)}")
    call = dict(row.arguments)
    if row.steps is not None:
        call["num_inference_steps"] = row.steps
    # Where classifier-free guidance is the default under another name, it is off, without a word,
    # as long as there is no negative prompt.
    true = takes["true_cfg_scale"].default if "true_cfg_scale" in takes else 1.0
    guided = true is not None and true > 1
    if row.guidance is not None:
        call["true_cfg_scale" if guided else "guidance_scale"] = row.guidance
    if guided:
        call.setdefault("true_cfg_scale", true)
        call.setdefault("negative_prompt", " ")
    if row.resolution is not None:
        both = row.resolution
        size = both if isinstance(both, tuple) else (both, both)
        call |= {"height": size[0], "width": size[1]}
        if "use_resolution_binning" in takes:  # else another size is drawn and stretched
            call.setdefault("use_resolution_binning", False)
    if missing := [name for name in call if name not in takes]:
        raise ValueError(f"{kind.__name__} takes no {', '.join(missing)}; leave it out of the row")
    return call


def _absent(kind: Any, index: Mapping[str, Any], row: PipelineRow) -> list[str]:
    """Text encoders and tokenizers that a class knows and a folder has not: SD3 draws without
    T5. Whatever else is not there, diffusers refuses; HiDream's Llama alone it asks for when it
    draws."""
    there = {name for name, entry in index.items() if entry != [None, None]} | {*row.components}
    known = inspect.signature(kind.__init__).parameters
    absent = [
        name
        for name in known
        if name.startswith(("text_encoder", "tokenizer")) and name not in there
    ]
    if lost := [name for name in absent if name.endswith("_4")]:
        asked = ", ".join(f"{name}: FOLDER" for name in lost)
        raise ValueError(
            f"{row.pipeline} has no {' and no '.join(lost)}; set components: {{{asked}}}"
        )
    return absent


def _load(
    row: PipelineRow, folder: str, kind: Any, index: Mapping[str, Any], absent: Sequence[str]
) -> Any:
    """The pipeline, every component with weights by the strict loader."""
    components: dict[str, Any] = dict.fromkeys(absent)
    hints = get_type_hints(kind.__init__)
    known = inspect.signature(kind.__init__).parameters
    if strange := row.components.keys() - known.keys():
        raise ValueError(f"components: {kind.__name__} has no {', '.join(sorted(strange))}")
    for name, entry in index.items():
        if not (isinstance(entry, list) and len(entry) == 2) or name in row.components:
            continue
        component = _component(*entry)
        if component is not None and issubclass(component, torch.nn.Module):
            components[name] = _module(component, folder, name, row.dtype, subfolder=name)
    for name, path in row.components.items():
        component, place = hints.get(name), locate(path)
        if inspect.isclass(component) and issubclass(component, torch.nn.Module):
            components[name] = _module(component, place, name, row.dtype)
        else:
            components[name] = pretrained.read(component, place, part=name)
    if "add_watermarker" in known:
        components["add_watermarker"] = False
    repo, revision = hub.split(folder)
    precision = {"torch_dtype": getattr(torch, row.dtype), "use_safetensors": True}
    try:
        return kind.from_pretrained(repo, revision=revision, **precision, **components)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{folder}: {first_line(error)}; give a whole pipeline") from error


def _module(kind: Any, folder: str, name: str, dtype: str, *, subfolder: str = "") -> Any:
    precision = {"torch_dtype": getattr(torch, dtype)}
    if kind.__module__.startswith("transformers"):
        precision = {"dtype": precision["torch_dtype"]}
    return pretrained.load(kind, folder, part=name, subfolder=subfolder, **precision)


def _component(library: str | None, name: str | None) -> Any:
    """The class that model_index.json names; None of a part that is left out."""
    if library is None or name is None:
        return None
    if library not in ("diffusers", "transformers"):  # a folder of diffusers' pipelines
        library = f"diffusers.pipelines.{library}"
    try:
        return getattr(importlib.import_module(library), name)
    except (ImportError, AttributeError):
        raise ValueError(
            f"{INDEX} names {name} of {library}, which is not there; no code of others is run"
        ) from None


def _lora_file(path: str) -> Path:
    place = expanded(path)
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise ValueError(
            f"lora: {place} has {len(files)} safetensors files, needs one; give a file of a LoRA, "
            "or its folder"
        )
    return files[0]


def _add_lora(pipe: Any, row: PipelineRow) -> int:
    """Load a row's LoRA; the number of layers that it is on."""
    from safetensors import safe_open

    file = _lora_file(row.lora)
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"lora: {type(pipe).__name__} takes none")
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    asked = sum(".lora_A." in name or ".lora_down." in name for name in names)
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=LORA)
    except Exception as error:
        raise ValueError(f"lora: {file}: {first_line(error)}; give one of this model") from None
    found = sum(
        name.endswith(f".lora_A.{LORA}.weight")
        for module in pipe.components.values()
        if isinstance(module, torch.nn.Module)
        for name, _ in module.named_parameters()
    )
    split = any(".lora_down." in name for name in names)  # may have q, k and v in one
    if not found or (found != asked and not split):
        raise ValueError(
            f"lora: {file} is for {asked} layers and {found} of {type(pipe).__name__} took it; "
            "give a LoRA of this model"
        )
    pipe.set_adapters([LORA], [row.lora_scale])
    return found
