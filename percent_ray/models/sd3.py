"""Stable Diffusion 3 and 3.5: any folder or hub id of a diffusers StableDiffusion3Pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.models import decoder, pretrained, trained
from percent_ray.models.base import Condition
from percent_ray.models.text import check_width, has, tower
from percent_ray.recipe import tree

TINY = "madebyollin/taesd3"
"""An AutoencoderTiny of the family's latents."""


def load_policy(
    model: tree.Model, *, seed: int, device: torch.device, text: bool
) -> "StableDiffusion3":
    """The transformer and the scheduler of `model.path`, and with `text` its text encoders.

    The transformer is in `model.dtype`; its LoRA adapter is float32 and a function of `seed`.
    T5 is loaded where `model.t5` asks for it and the pipeline has one. Raises ValueError for a path
    that is no SD3 pipeline or lacks a weight, a resolution that does not fit, LoRA targets that
    match no layer, and `model.true_cfg`.
    """
    index = trained.index(model, StableDiffusion3.pipeline)
    if model.true_cfg != 1:
        raise ValueError(
            f"model.true_cfg {model.true_cfg:g} is FLUX's; the classifier-free guidance of SD3 is "
            "model.guidance: set that, and model.true_cfg to 1"
        )
    network = trained.read(model, StableDiffusion3.transformer, device)
    patch, channels = network.config.patch_size, int(network.config.in_channels)
    size = trained.latent_size(
        model, patch, channels=channels, largest=network.config.pos_embed_max_size
    )
    network = trained.adapt(model, network, seed=seed, device=device)
    scheduler = trained.scheduler(model)
    encoder = _text_pipeline(model, index, network, scheduler, device) if text else None
    return StableDiffusion3(
        model,
        network,
        scheduler,
        encoder,
        latent_shape=(channels, *size),
        patch=patch,
        cfg=model.guidance,
        device=device,
    )


def load_decoder(model: tree.Model, *, device: torch.device) -> decoder.VaeDecoder:
    """The VAE of `model.path`. Raises ValueError for a path that is no SD3 pipeline."""
    trained.index(model, StableDiffusion3.pipeline)
    return decoder.load_decoder(model, device=device)


class StableDiffusion3(trained.Trained):
    """A `Policy` (models/base.py)."""

    pipeline = "StableDiffusion3Pipeline"
    transformer = "SD3Transformer2DModel"

    def describe(self) -> str:
        line = super().describe()
        without = self._encoder is not None and self._encoder.text_encoder_3 is None
        return f"{line}; without T5, whose part of a condition is zeros" if without else line

    def _text_tokens(self) -> int:
        """CLIP's, then T5's or as many zeros."""
        from transformers import CLIPTextConfig

        clip = pretrained.read(
            CLIPTextConfig,
            self._model.folder,
            part="model.path: text_encoder",
            subfolder="text_encoder",
        )
        return clip.max_position_embeddings + self._model.max_sequence_length

    def _embed(self, texts: Sequence[str]) -> Condition:
        embeds, _, pooled, _ = self._encoder.encode_prompt(
            list(texts),
            None,
            None,
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._model.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _predict(
        self,
        latents: Float[Tensor, "B C H W"],
        sigma: Float32[Tensor, " B"],
        embeds: Float[Tensor, "B L D"],
        pooled: Float[Tensor, "B P"],
    ) -> Float32[Tensor, "B C H W"]:
        return self.module(
            hidden_states=latents,
            timestep=sigma * self._scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
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

    clip = CLIPTextModelWithProjection, CLIPTokenizer
    parts = tower(model, *clip, number="", device=device)
    parts |= tower(model, *clip, number="_2", device=device)
    if model.t5 and has(index, "text_encoder_3"):
        instead = "set model.t5 to false, or model.path to a folder that has it"
        t5 = T5EncoderModel, T5Tokenizer
        parts |= tower(model, *t5, number="_3", device=device, instead=instead)
    else:
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    pooled = sum(parts[f"text_encoder{n}"].config.projection_dim for n in ("", "_2"))
    check_width("text_encoder and text_encoder_2", pooled, network, "pooled_projection_dim", model)
    # Without T5 the pipeline reads the width of its zeros from the transformer.
    vae: Any = None
    return StableDiffusion3Pipeline(transformer=network, scheduler=scheduler, vae=vae, **parts)
