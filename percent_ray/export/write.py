"""One export from a checkpoint to a folder, and the words that say what is in it."""

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from percent_ray.export import adapter, pipeline
from percent_ray.export.source import Source
from percent_ray.models import hub

Format = Literal["diffusers", "comfyui"]


def export(source: Source, folder: Path, *, merged: bool, form: Format) -> list[str]:
    """Write `source` into `folder`, whole or not at all; returns lines that say what was written
    and how it is loaded.

    A LoRA, or with `merged` (and for a run without one) a pipeline. Raises ValueError where the
    folder has something in it, and for what cannot be written in that form.
    """
    folder = folder.absolute()
    if folder.is_symlink():
        raise ValueError(f"--to: {folder} is a link; give a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--to: {folder} is there and not empty; give a new folder")
    if merged and form == "comfyui":
        raise ValueError("--format comfyui is of LoRA files; drop --merged or --format comfyui")
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if form == "comfyui":
            path = adapter.write_comfyui(source, partial)
            said, how = _described(source), _comfyui_lines(folder / path.name)
        elif merged or not source.model.lora_rank:
            said = [*_described(source), *_merged(pipeline.write(source, partial))]
            how = _pipeline_lines(source, str(folder), None)
        else:
            adapter.write(source, partial)
            said = _described(source)
            how = _pipeline_lines(source, _place(source), str(folder))
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return [*said, *_sizes(folder), "", *how]


def _described(source: Source) -> list[str]:
    which = "EMA" if source.average else "trained"
    what = f"LoRA of rank {source.model.lora_rank}" if source.model.lora_rank else "every weight"
    said = [f"{source.run}, step {source.step}: {what}, the {which} weights"]
    if source.model.lora_rank and not any(
        weight.any() for name, weight in source.weights.items() if ".lora_B." in name
    ):
        hint = ": it moves every learner.ema_every optimizer steps; see --raw"
        said.append(f"it changes nothing yet, its B are all 0{hint if source.average else ''}")
    return said


def _merged(merged: pipeline.Merged) -> Iterator[str]:
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in merged.dtypes)
    line = f"transformer: {merged.changed} of {merged.weights} weights changed, in {dtypes}"
    if merged.lost > 1e-4:
        line += f"; rounding to it takes or adds {merged.lost:.1%} of the change"
    yield line
    if merged.left_out:
        yield f"left out, as in training (model.t5 false): {', '.join(merged.left_out)}"


def _place(source: Source) -> str:
    """The base pipeline, which need not be on this machine."""
    model = source.model
    return model.folder if model.path.startswith("shapes/") else model.path


def _pipeline_lines(source: Source, base: str, weights: str | None) -> list[str]:
    """At most five lines of Python that draw a picture as the run's probes are drawn."""
    model = source.model
    height, width = model.size
    options: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_inference_steps": source.steps,
        "guidance_scale": model.guidance,
        "max_sequence_length": model.max_sequence_length,
    }
    if model.true_cfg > 1:
        options |= {"negative_prompt": "", "true_cfg_scale": model.true_cfg}
    repo, revision = hub.split(base)
    at = f", revision={revision!r}" if revision else ""
    moved = (
        ""
        if model.path.startswith("shapes/")
        else '.to("cuda" if torch.cuda.is_available() else "cpu")'
    )
    absent = "" if model.t5 else ", text_encoder_3=None, tokenizer_3=None"
    lora = [] if weights is None else [f"pipe.load_lora_weights({weights!r})"]
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return [
        "import torch, diffusers",
        f"pipe = diffusers.DiffusionPipeline.from_pretrained({repo!r}{at}, "
        f"torch_dtype=torch.{model.dtype}{absent}){moved}",
        *lora,
        f'images = pipe("a photo of a red circle", {given}).images',
        'images[0].save("picture.png")',
    ]


def _comfyui_lines(path: Path) -> list[str]:
    return [
        f"cp {shlex.quote(str(path))} ComfyUI/models/loras/",
        f"node Load LoRA (Model): lora_name {path.name}, strength_model 1.0",
    ]


def _sizes(folder: Path) -> Iterator[str]:
    """A line for every part, the largest last words of which are its size."""
    for path in sorted(folder.iterdir()):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files)
        yield f"{path}{'/' if path.is_dir() else ''}  {_readable(size)}"


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
