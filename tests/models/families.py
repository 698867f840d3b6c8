"""What the suite of `test_policy.py` must know of each model family."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from percent_ray.models import base
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
    world: str
    """A shipped model of the family, with real structure in its weights."""
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
        height=tiny.RESOLUTION,
        width=tiny.RESOLUTION,
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


FAMILIES = [
    Family(
        name="sd3",
        build=tiny.build_sd3,
        settings=tiny.sd3_config,
        pipeline=tiny.load_sd3,
        sample=sd3_sample,
        predict=sd3_predict,
        world="shapes/sd3",
        layer="proj_out.weight",
    ),
]
