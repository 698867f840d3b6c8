"""FLUX.1: any folder or hub id of a diffusers FluxPipeline, with a guidance embedding (dev) or
without one (schnell)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from percent_ray.models import decoder, trained
from percent_ray.models.base import Condition
from percent_ray.models.text import check_width, tower
from percent_ray.recipe import tree

TINY = "madebyollin/taef1"
"""An AutoencoderTiny of the family's latents."""
PATCH = 2
"""Latent pixels on a side of one token; the transformer itself has patches of 1."""


def load_policy(model: tree.Model, *, seed: int, device: torch.device, text: bool) -> "Flux":
    """The transformer and the scheduler of `model.path`, and with `text` its text encoders.

    The transformer is in `model.dtype`; its LoRA adapter is float32 and a function of `seed`.
    Raises ValueError for a path that is no FLUX pipeline or lacks a weight, a resolution that does
    not fit, LoRA targets that match no layer, and `model.t5` off: T5 is all that reads the words.
    """
    trained.index(model, Flux.pipeline)
    if not model.t5:
        raise ValueError("model.t5 false: FLUX reads its prompts by T5; set it to true")
    network = trained.read(model, Flux.transformer, device)
    channels = network.config.in_channels // PATCH**2
    latent_shape = (channels, *trained.latent_size(model, PATCH, channels=channels))
    network = trained.adapt(model, network, seed=seed, device=device)
    scheduler = trained.scheduler(model)
    encoder = _text_pipeline(model, network, scheduler, device) if text else None
    return Flux(
        model,
        network,
        scheduler,
        encoder,
        latent_shape=latent_shape,
        patch=PATCH,
        cfg=model.true_cfg,
        device=device,
    )


def load_decoder(model: tree.Model, *, device: torch.device) -> decoder.VaeDecoder:
    """The VAE of `model.path`. Raises ValueError for a path that is no FLUX pipeline."""
    trained.index(model, Flux.pipeline)
    return decoder.load_decoder(model, device=device)


class Flux(trained.Trained):
    """A `Policy` (models/base.py). `model.guidance` is a value that the transformer is conditioned
    on; classifier-free guidance beside it is `model.true_cfg`, with the empty prompt."""

    pipeline = "FluxPipeline"
    transformer = "FluxTransformer2DModel"
    linear_sigmas = True

    def describe(self) -> str:
        line = super().describe()
        if self._network.config.guidance_embeds:
            return line
        return f"{line}; it has no guidance embedding, model.guidance is not read"

    def _text_tokens(self) -> int:
        return self._model.max_sequence_length

    def _embed(self, texts: Sequence[str]) -> Condition:
        embeds, pooled, _ = self._encoder.encode_prompt(
            list(texts), device=self._device, max_sequence_length=self._model.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _predict(
        self,
        latents: Float[Tensor, "B C H W"],
        sigma: Float32[Tensor, " B"],
        embeds: Float[Tensor, "B L D"],
        pooled: Float[Tensor, "B P"],
    ) -> Float32[Tensor, "B C H W"]:
        rows, _, height, width = latents.shape
        guidance = None
        if self._network.config.guidance_embeds:
            guidance = torch.full((rows,), self._model.guidance, device=self._device)
        predicted = self.module(
            hidden_states=pack(latents),
            # Rounded as the pipeline rounds it: in bfloat16 that is another time than sigma's.
            timestep=(sigma * 1000).to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=image_ids(height // PATCH, width // PATCH, self._device).to(embeds.dtype),
            return_dict=False,
        )[0]
        return unpack(predicted.float(), height // PATCH, width // PATCH)


def pack(latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
    """Tokens of 2 x 2 latent pixels, in rows: F = 4 C features, channel by channel."""
    return functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Float[Tensor, "B N F"], rows: int, columns: int) -> Float[Tensor, "B C H W"]:
    """The inverse of `pack`, of rows x columns tokens."""
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)


def image_ids(
    rows: int, columns: int, device: torch.device | None = None
) -> Float32[Tensor, "N 3"]:
    """Of each token (0, row, column), which the rotary embedding reads; made where it is read."""
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)


def _text_pipeline(model: tree.Model, network: Any, scheduler: Any, device: torch.device) -> Any:
    """A pipeline that can only encode prompts: it has the text parts and no VAE."""
    from diffusers import FluxPipeline
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    parts = tower(model, CLIPTextModel, CLIPTokenizer, number="", device=device)
    t5 = T5EncoderModel, T5Tokenizer
    instead = "FLUX reads its prompts by T5: set model.path to a folder that has it"
    parts |= tower(model, *t5, number="_2", device=device, instead=instead)
    for number, key in (("", "pooled_projection_dim"), ("_2", "joint_attention_dim")):
        name = f"text_encoder{number}"
        check_width(name, parts[name].config.hidden_size, network, key, model)
    vae: Any = None
    return FluxPipeline(transformer=network, scheduler=scheduler, vae=vae, **parts)
