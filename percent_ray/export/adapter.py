"""A trained LoRA as one file: for diffusers, or for ComfyUI."""

from pathlib import Path

import torch

from percent_ray.export.source import Source
from percent_ray.models import lora


def write(source: Source, folder: Path) -> Path:
    """The file that the diffusers pipeline's `load_lora_weights(folder)` reads, with the header of
    the checkpoint's own: rank and alpha are in it. Raises ValueError for a run without adapter."""
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = _tensors(source)
    with safe_open(source.policy / LORA_WEIGHT_NAME_SAFE, framework="pt") as saved:
        header = saved.metadata()
    path = folder / LORA_WEIGHT_NAME_SAFE
    save_file(tensors, path, metadata=header)
    return path


def write_comfyui(source: Source, folder: Path) -> Path:
    """RUN-STEP.safetensors in the layout that ComfyUI calls the regular diffusers one:

        transformer.MODULE.lora_A.weight [r, in]    transformer.MODULE.lora_B.weight [out, r]
        transformer.MODULE.alpha         []         the weight gains alpha / r B A

    MODULE is the layer's name in diffusers. For SD3 and FLUX ComfyUI makes a key of this form for
    every layer of the transformer and knows which rows of its own fused layers (qkv, in FLUX's
    single blocks qkv and mlp) each one is, so that nothing has to be fused here
    (ComfyUI, comfy/lora.py `model_lora_keys_unet` with `mmdit_to_diffusers` and `flux_to_diffusers`
    of comfy/utils.py). It reads no header, which is where diffusers has alpha: without the alpha
    keys its scale would be 1. Raises ValueError for a run without adapter.
    """
    from safetensors.torch import save_file

    tensors = _tensors(source)
    for name in list(tensors):
        module = name.partition(".lora_")[0]
        tensors[f"{module}.alpha"] = torch.tensor(float(source.model.lora_alpha))
    path = folder / f"{source.run}-{source.step}.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def _tensors(source: Source) -> dict[str, torch.Tensor]:
    """The adapter by the names that a file has. Raises ValueError for a run without one."""
    if not source.model.lora_rank:
        raise ValueError(
            f"{source.checkpoint} has no adapter: the run trained every weight (model.lora_rank "
            "0); give --merged and --format diffusers, whose FOLDER/transformer ComfyUI's node "
            "Load Diffusion Model reads, too, where that is one file"
        )
    layers = lora.named(source.weights)
    return {f"transformer.{name}": weight.contiguous() for name, weight in layers.items()}
