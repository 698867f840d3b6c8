"""Stable Diffusion 3 and 3.5: any folder or hub id of a diffusers StableDiffusion3Pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.models import decoder, pretrained, trained
from percent_ray.models.base import Condition
from percent_ray.recipe import tree


def load_policy(
    model: tree.Model, *, seed: int, device: torch.device, text: bool
) -> "StableDiffusion3":
    """The transformer and the scheduler of `model.path`, and with `text` its text encoders.

    The transformer is in `model.dtype`; its LoRA adapter is float32 and a function of `seed`.
    T5 is loaded where `model.t5` asks for it and the pipeline has one. Raises ValueError for a path
    that is no SD3 pipeline or lacks a weight, a resolution that does not fit and LoRA targets that
    match no layer.
    """
    index = trained.index(model, StableDiffusion3.pipeline)
    network = trained.read(model, StableDiffusion3.transformer)
    side = trained.latent_side(
        model, patch=network.config.patch_size, largest=network.config.pos_embed_max_size
    )
    network = trained.adapt(model, network, seed=seed, device=device)
    scheduler = trained.scheduler(model)
    encoder = _text_pipeline(model, index, network, scheduler, device) if text else None
    return StableDiffusion3(model, network, scheduler, encoder, side=side, device=device)


def load_decoder(model: tree.Model, *, device: torch.device) -> decoder.VaeDecoder:
    """The VAE of `model.path`. Raises ValueError for a path that is no SD3 pipeline."""
    trained.index(model, StableDiffusion3.pipeline)
    return decoder.load_decoder(model, device=device)


class StableDiffusion3(trained.Trained):
    """A `Policy` (models/base.py)."""

    pipeline = "StableDiffusion3Pipeline"
    transformer = "SD3Transformer2DModel"

    def __init__(
        self,
        model: tree.Model,
        network: Any,
        scheduler: Any,
        encoder: Any,
        *,
        side: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            model,
            network,
            scheduler,
            latent_shape=(int(network.config.in_channels), side, side),
            tokens=(side // network.config.patch_size) ** 2,
            device=device,
        )
        self._encoder = encoder

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """What StableDiffusion3Pipeline.encode_prompt yields for N prompts, in the model's dtype on
        its device: `prompt_embeds` [N, L, D], `pooled_prompt_embeds` [N, P], and both with
        `negative_` in front for the empty prompt where guidance is on."""
        if self._encoder is None:
            raise ValueError("this policy has no text encoders; load it with text=True")
        embeds, negative, pooled, negative_pooled = self._encoder.encode_prompt(
            list(texts),
            None,
            None,
            device=self._device,
            do_classifier_free_guidance=self._model.guidance > 1,
            max_sequence_length=self._model.max_sequence_length,
        )
        condition = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if self._model.guidance > 1:
            condition |= {
                "negative_prompt_embeds": negative,
                "negative_pooled_prompt_embeds": negative_pooled,
            }
        return condition

    def velocity(
        self, latents: Float[Tensor, "B C H W"], sigma: Float32[Tensor, " B"], condition: Condition
    ) -> Float32[Tensor, "B C H W"]:
        """u + guidance (c - u), in float32 on the model's device. A condition has 1 or B rows.

        The two branches are two passes: u carries no gradient, and a draw and its replay run the
        same shapes through the same kernels, which keeps the first ratio at 1.
        """
        conditional = self._predict(latents, sigma, condition, "")
        if self._model.guidance == 1:
            return conditional
        with torch.no_grad():
            unconditional = self._predict(latents, sigma, condition, "negative_")
        return unconditional + self._model.guidance * (conditional - unconditional)

    def _predict(
        self, latents: Tensor, sigma: Tensor, condition: Condition, branch: str
    ) -> Float32[Tensor, "B C H W"]:
        embeds = condition[f"{branch}prompt_embeds"].to(self._device, self._dtype)
        pooled = condition[f"{branch}pooled_prompt_embeds"].to(self._device, self._dtype)
        rows = latents.shape[0]
        return self.module(
            hidden_states=latents.to(self._device, self._dtype),
            timestep=sigma.to(self._device) * self._scheduler.config.num_train_timesteps,
            # Contiguous: over an expanded row, with stride 0, other kernels round otherwise than
            # over the replay's rows.
            encoder_hidden_states=embeds.expand(rows, -1, -1).contiguous(),
            pooled_projections=pooled.expand(rows, -1).contiguous(),
            return_dict=False,
        )[0].float()


def _text_pipeline(
    model: tree.Model,
    index: Mapping[str, Any],
    network: Any,
    scheduler: Any,
    device: torch.device,
) -> Any:
    """A pipeline that can only encode prompts: it has the text parts and no VAE."""
    from diffusers import StableDiffusion3Pipeline
    from transformers import (
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5EncoderModel,
        T5Tokenizer,
    )

    def tower(kind: Any, tokenizer: Any, number: str) -> dict[str, Any]:
        encoder = pretrained.load(
            kind,
            model.folder,
            part=f"model.path: text_encoder{number}",
            subfolder=f"text_encoder{number}",
            dtype=getattr(torch, model.dtype),
        )
        tokens = pretrained.tokenizer(
            tokenizer,
            model.folder,
            part=f"model.path: tokenizer{number}",
            vocabulary=encoder.config.vocab_size,
            subfolder=f"tokenizer{number}",
        )
        frozen = encoder.requires_grad_(False).to(device)
        return {f"text_encoder{number}": frozen, f"tokenizer{number}": tokens}

    clip = CLIPTextModelWithProjection, CLIPTokenizer
    text = tower(*clip, "") | tower(*clip, "_2")
    if model.t5 and (index.get("text_encoder_3") or [None])[0] is not None:
        text |= tower(T5EncoderModel, T5Tokenizer, "_3")
    else:
        text |= {"text_encoder_3": None, "tokenizer_3": None}
    # Without T5 the pipeline reads the width of its zeros from the transformer.
    vae: Any = None
    return StableDiffusion3Pipeline(transformer=network, scheduler=scheduler, vae=vae, **text)
