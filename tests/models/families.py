"""What the suite of `test_policy.py` must know of each model family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from percent_ray.models import base, flux
from percent_ray.recipe import tree
from tests import tiny
from tests.models.cases import CPU


@dataclass(frozen=True)
class Family:
    name: str
    """Its module in percent_ray/models."""
    build: Callable[[Path], Any]
    """Writes a random tiny pipeline into a folder."""
    settings: Callable[..., tree.Model]
    """The recipe's `model` section for such a folder, with changes."""
    pipeline: Callable[[Path], Any]
    """The whole pipeline of a folder, as a user of diffusers loads it."""
    sample: Callable[..., Tensor]
    """(pipeline, texts, start, steps, guidance) to the pipeline's final latents."""
    predict: Callable[..., Tensor]
    """(transformer, latents, sigma, condition) to its velocity, without guidance."""
    world: Mapping[str, Any]
    """The `model` settings of a shipped model of the family, with real structure in its weights;
    empty where there is none."""
    layer: str
    """A weight of the transformer."""

    def policy(self, folder: Path, *, seed: int = 0, text: bool = True, **changes: Any) -> Any:
        model = self.settings(folder, **changes)
        return base.family(self.name).load_policy(model, seed=seed, device=CPU, text=text)


def sd3_sample(
    pipeline: Any, texts: list[str], start: Tensor, steps: int, guidance: float
) -> Tensor:
    return pipeline(
        texts,
        latents=start,
        height=tiny.SCALE * start.shape[2],
        width=tiny.SCALE * start.shape[3],
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=8,
        output_type="latent",
    ).images


def sd3_predict(
    transformer: Any, latents: Tensor, sigma: Tensor, condition: dict[str, Tensor]
) -> Tensor:
    return transformer(
        hidden_states=latents,
        timestep=sigma * 1000,
        encoder_hidden_states=condition["prompt_embeds"],
        pooled_projections=condition["pooled_prompt_embeds"],
    ).sample


def flux_sample(
    pipeline: Any, texts: list[str], start: Tensor, steps: int, guidance: float
) -> Tensor:
    latents = pipeline(
        texts,
        latents=flux.pack(start),
        height=tiny.SCALE * start.shape[2],
        width=tiny.SCALE * start.shape[3],
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=8,
        output_type="latent",
    ).images
    return flux.unpack(latents, start.shape[2] // flux.PATCH, start.shape[3] // flux.PATCH)


def flux_predict(
    transformer: Any, latents: Tensor, sigma: Tensor, condition: dict[str, Tensor]
) -> Tensor:
    side = latents.shape[-1] // flux.PATCH
    guidance = torch.ones(len(latents)) if transformer.config.guidance_embeds else None
    tokens = transformer(
        hidden_states=flux.pack(latents),
        timestep=sigma,
        guidance=guidance,
        pooled_projections=condition["pooled_prompt_embeds"],
        encoder_hidden_states=condition["prompt_embeds"],
        txt_ids=torch.zeros(condition["prompt_embeds"].shape[1], 3),
        img_ids=flux.image_ids(side, side),
    ).sample
    return flux.unpack(tokens, side, side)


FAMILIES = [
    Family(
        name="flux",
        build=tiny.build_flux,
        settings=tiny.flux_config,
        pipeline=tiny.load_flux,
        sample=flux_sample,
        predict=flux_predict,
        world={},
        layer="proj_out.weight",
    ),
    Family(
        name="sd3",
        build=tiny.build_sd3,
        settings=tiny.sd3_config,
        pipeline=tiny.load_sd3,
        sample=sd3_sample,
        predict=sd3_predict,
        world={"path": "shapes/sd3", "resolution": 32, "t5": False, "max_sequence_length": 1},
        layer="proj_out.weight",
    ),
]
