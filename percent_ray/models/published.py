"""Config files of published pipelines, for a dry run on a machine that does not have them.

Facts as the models' own repositories had them in November 2026; a folder or a hub cache that is at
hand is read in their place.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from percent_ray.models import hub
from percent_ray.recipe import tree
from percent_ray.recipe.paths import locate

Files = Mapping[str, Mapping[str, Any]]
"""Contents of JSON files by their path in the pipeline's folder."""


def at_hand(model: tree.Model, folder: Path) -> tuple[tree.Model, str]:
    """`model` with a path that can be read without a network, and where its configs come from: its
    own folder, the hub's cache, or what is written to the empty `folder` from `PIPELINES`. Raises
    ValueError where it is none of these."""
    found, source = _at_hand("model.path", model.path, "model_index.json", PIPELINES, folder)
    return model.model_copy(update={"path": found}), source


def tiny_at_hand(path: str, folder: Path) -> str:
    """The same of the path of a tiny decoder."""
    return _at_hand("perceptual.tiny_path", path, "config.json", TINY, folder)[0]


def _at_hand(
    key: str, path: str, file: str, known: Mapping[str, Files], folder: Path
) -> tuple[str, str]:
    from huggingface_hub import try_to_load_from_cache

    place = locate(path)
    if Path(place).is_dir():
        return path, place
    repo, revision = hub.split(place)
    cached = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(cached, str):
        found = str(Path(cached).parent)
        return found, f"the hub's cache, {found}"
    if repo not in known:
        raise ValueError(
            f"{key}: {path} is neither a folder nor in the hub's cache, and only the configs of "
            f"{', '.join(known)} are known; give a folder"
        )
    write(known[repo], folder)
    return str(folder), "what was published, from memory"


def write(files: Files, folder: Path) -> None:
    """Lay them out as a pipeline's folder."""
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(contents))


def _clip(width: int, layers: int, heads: int, activation: str) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "max_position_embeddings": 77,
        "projection_dim": width,
        "vocab_size": 49408,
    }


T5 = {
    "model_type": "t5",
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
    "vocab_size": 32128,
}
CLIP_L = _clip(768, 12, 12, "quick_gelu")
CLIP_G = _clip(1280, 32, 20, "gelu")
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def _vae(scaling: float, shift: float) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": scaling,
        "shift_factor": shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


SD35_MEDIUM: Files = {
    "model_index.json": {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "transformer/config.json": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": list(range(13)),
    },
    "vae/config.json": _vae(1.5305, 0.0609),
    "scheduler/scheduler_config.json": SCHEDULER,
    "text_encoder/config.json": CLIP_L,
    "text_encoder_2/config.json": CLIP_G,
    "text_encoder_3/config.json": T5,
}

FLUX_DEV: Files = {
    "model_index.json": {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "transformer/config.json": {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    "vae/config.json": _vae(0.3611, 0.1159),
    "scheduler/scheduler_config.json": SCHEDULER
    | {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
    "text_encoder/config.json": CLIP_L,
    "text_encoder_2/config.json": T5,
}

PIPELINES: Mapping[str, Files] = {
    "stabilityai/stable-diffusion-3.5-medium": SD35_MEDIUM,
    "black-forest-labs/FLUX.1-dev": FLUX_DEV,
}

TINY: Mapping[str, Files] = {
    name: {"config.json": {"_class_name": "AutoencoderTiny", "latent_channels": 16}}
    for name in ("madebyollin/taesd3", "madebyollin/taef1")
}
"""Tiny decoders of those, all else as the class has it."""

WEIGHTS: Mapping[str, int] = {
    "yuvalkirstain/PickScore_v1": 986_109_441,
    "facebook/dinov2-base": 86_580_480,
}
"""Of scorers' models, by hub id."""
