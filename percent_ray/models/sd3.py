"""Stable Diffusion 3 and 3.5: any folder or hub id of a diffusers StableDiffusion3Pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from percent_ray import config
from percent_ray.models import lora, parts
from percent_ray.models.base import Condition

PIPELINE = "StableDiffusion3Pipeline"


def load_policy(
    model: config.Model, *, seed: int, device: torch.device, text: bool
) -> "StableDiffusion3":
    """The transformer and the scheduler of `model.path`, and with `text` its text encoders.

    The transformer is in `model.dtype`; its LoRA adapter is float32 and a function of `seed`.
    T5 is loaded where `model.t5` asks for it and the pipeline has one. Raises ValueError for a path
    that is no SD3 pipeline, a resolution that does not fit and LoRA targets that match no layer.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    index = parts.index(model, PIPELINE)
    transformer = _transformer(model)
    side = parts.latent_side(
        model,
        patch=transformer.config.patch_size,
        largest=transformer.config.pos_embed_max_size,
    )
    if model.lora_rank:
        lora.add(
            transformer,
            rank=model.lora_rank,
            alpha=model.lora_alpha,
            targets=model.lora_targets,
            seed=seed,
        )
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.to(device)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model.folder, subfolder="scheduler")
    encoder = _text_pipeline(model, index, transformer, scheduler, device) if text else None
    return StableDiffusion3(model, transformer, scheduler, encoder, side=side, device=device)


def load_decoder(model: config.Model, *, device: torch.device) -> parts.VaeDecoder:
    """The VAE of `model.path`. Raises ValueError for a path that is no SD3 pipeline."""
    parts.index(model, PIPELINE)
    return parts.load_decoder(model, device=device)


class StableDiffusion3:
    """A `Policy` (models/base.py)."""

    def __init__(
        self,
        model: config.Model,
        transformer: Any,
        scheduler: Any,
        encoder: Any,
        *,
        side: int,
        device: torch.device,
    ) -> None:
        self.module: nn.Module = transformer
        self.latent_shape = (int(transformer.config.in_channels), side, side)
        self._model = model
        self._transformer = transformer
        self._scheduler = scheduler
        self._encoder = encoder
        self._device = device
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._frozen: nn.Module | None = None

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
            encoder_hidden_states=embeds.expand(rows, -1, -1),
            pooled_projections=pooled.expand(rows, -1),
            return_dict=False,
        )[0].float()

    def sigmas(self, steps: int) -> Float32[Tensor, " T+1"]:
        """The scheduler's sigmas as the pipeline sets them: 1 down to 0, on the CPU."""
        shift = {}
        if self._scheduler.config.use_dynamic_shifting:
            shift["mu"] = self._dynamic_shift()
        self._scheduler.set_timesteps(steps, device="cpu", **shift)
        return self._scheduler.sigmas.to("cpu", torch.float32, copy=True)

    def _dynamic_shift(self) -> float:
        """The pipeline's mu: a line through (base tokens, base shift) and (max, max)."""
        from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3 as pipeline

        c = self._scheduler.config
        tokens = (self.latent_shape[1] // self._transformer.config.patch_size) ** 2
        return pipeline.calculate_shift(
            tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift
        )

    def reference(self) -> AbstractContextManager[None]:
        """Inside, `velocity` is that of the model before training.

        Under LoRA the adapter is off. In full fine-tuning `module` is a frozen copy, read from
        `model.path` at the first use: the original whenever that is, also in a resumed run, and
        memory for a second transformer only where a reference is used.
        """
        return lora.disabled(self._transformer) if self._model.lora_rank else self._original()

    @contextmanager
    def _original(self) -> Iterator[None]:
        if self._frozen is None:
            self._frozen = _transformer(self._model).requires_grad_(False).to(self._device)
        trained, self.module = self.module, cast(nn.Module, self._frozen)
        try:
            yield
        finally:
            self.module = trained

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The trained parameters by their names in the transformer: the adapter's, or all."""
        return {n: p for n, p in self._transformer.named_parameters() if p.requires_grad}

    def save(self, folder: str, weights: Mapping[str, Tensor]) -> None:
        """Write `weights` (by the names of `trainable`) as safetensors: a file for
        `StableDiffusion3Pipeline.load_lora_weights(folder)`, or in full fine-tuning a folder for
        `SD3Transformer2DModel.from_pretrained(folder)`."""
        import diffusers
        from safetensors.torch import save_file

        if self._model.lora_rank:
            lora.save(self._transformer, diffusers.StableDiffusion3Pipeline, folder, weights)
            return
        state = self._transformer.state_dict() | dict(weights)
        self._transformer.save_config(folder)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
            Path(folder) / "diffusion_pytorch_model.safetensors",
            metadata={"format": "pt"},
        )

    @torch.no_grad()
    def load(self, folder: str) -> None:
        """Take the weights that `save` wrote. Raises ValueError where they are of another model."""
        from safetensors.torch import load_file

        whole = Path(folder) / "diffusion_pytorch_model.safetensors"
        found = lora.load(folder) if self._model.lora_rank else load_file(whole)
        trained = self.trainable()
        wrong = [n for n in trained if n not in found or found[n].shape != trained[n].shape]
        if wrong or (self._model.lora_rank and len(found) != len(trained)):
            raise ValueError(
                f"{folder} has {len(found)} weights, {len(wrong)} of this model's {len(trained)} "
                "are not there in their size; set model.lora_rank and lora_targets as in training"
            )
        for name, parameter in trained.items():
            parameter.copy_(found[name])


def _transformer(model: config.Model) -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel.from_pretrained(
        model.folder,
        subfolder="transformer",
        torch_dtype=getattr(torch, model.dtype),
        use_safetensors=True,
    )


def _text_pipeline(
    model: config.Model,
    index: Mapping[str, Any],
    transformer: Any,
    scheduler: Any,
    device: torch.device,
) -> Any:
    """A pipeline that can only encode prompts: it has the text parts and no VAE."""
    import transformers
    from diffusers import StableDiffusion3Pipeline

    def load(name: str, part: str, **options: Any) -> Any:
        return getattr(transformers, name).from_pretrained(model.folder, subfolder=part, **options)

    def encoder(name: str, part: str) -> Any:
        dtype = getattr(torch, model.dtype)
        return load(name, part, dtype=dtype, use_safetensors=True).requires_grad_(False).to(device)

    t5 = model.t5 and (index.get("text_encoder_3") or [None])[0] is not None
    text: dict[str, Any] = {
        "text_encoder": encoder("CLIPTextModelWithProjection", "text_encoder"),
        "tokenizer": load("CLIPTokenizer", "tokenizer"),
        "text_encoder_2": encoder("CLIPTextModelWithProjection", "text_encoder_2"),
        "tokenizer_2": load("CLIPTokenizer", "tokenizer_2"),
        "text_encoder_3": encoder("T5EncoderModel", "text_encoder_3") if t5 else None,
        "tokenizer_3": load("T5TokenizerFast", "tokenizer_3") if t5 else None,
    }
    # Without T5 the pipeline reads the width of its zeros from the transformer.
    vae: Any = None
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **text)
