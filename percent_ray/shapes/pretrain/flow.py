"""Trains the flow transformer and its two text encoders jointly, by flow matching on latents."""

from copy import deepcopy
from pathlib import Path
from typing import Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection

from percent_ray.shapes import scenes
from percent_ray.shapes.pretrain.common import Ema, progress, warmup_cosine
from percent_ray.shapes.pretrain.text import build_tokenizer, text_config
from percent_ray.shapes.pretrain.vae import copy_of, encode

TEXT_WIDTH: Final = 64
CAPTION_DROPOUT: Final = 0.1
TASK_SHARE: Final = {
    "single_object": 0.10,
    "two_object": 0.20,
    "counting": 0.15,
    "colors": 0.10,
    "position": 0.25,
    "color_attr": 0.20,
}
"""Of the training scenes: what has to be bound to what takes longest to learn."""
PATCH: Final = 2
"""As in SD3: 16 image tokens, a third of the time of 64."""
T5_TOKENS: Final = 1
"""``max_sequence_length`` of the pipeline: zeros that stand for the absent T5 encoder."""


def build(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """An untrained pipeline around ``vae``, with two text encoders and no T5."""
    tokenizer, tokenizer_2 = build_tokenizer(), build_tokenizer()
    config = text_config(tokenizer, width=TEXT_WIDTH, layers=3)
    transformer = SD3Transformer2DModel(
        sample_size=scenes.SIZE // 4,
        patch_size=PATCH,
        in_channels=vae.config["latent_channels"],
        out_channels=vae.config["latent_channels"],
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=scenes.SIZE // 4 // PATCH,
        qk_norm="rms_norm",
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer_2,
        text_encoder_3=None,  # type: ignore[arg-type]
        tokenizer_3=None,  # type: ignore[arg-type]
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def token_ids(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> Tensor:
    """int64 [N, 12]; both tokenizers are the same."""
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids


def condition(pipe: StableDiffusion3Pipeline, ids: Tensor) -> tuple[Tensor, Tensor]:
    """``pipe.encode_prompt`` with gradients, from token ids.

    Returns the context float32 [N, 12+1, 128] (penultimate hidden states side by side, then the
    zeros of the absent T5) and the pooled embeddings float32 [N, 128].
    """
    hidden: list[Tensor] = []
    pooled: list[Tensor] = []
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        out = encoder(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2])
        pooled.append(out.text_embeds)
    context = functional.pad(torch.cat(hidden, dim=-1), (0, 0, 0, T5_TOKENS))
    return context, torch.cat(pooled, dim=-1)


def velocity(
    transformer: SD3Transformer2DModel, noisy: Tensor, t: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """v of latents [N,C,8,8] at t [N], under what ``condition`` returns."""
    return transformer(
        hidden_states=noisy,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=1000 * t,  # type: ignore[arg-type]
        return_dict=False,
    )[0]


def mixed(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1-t) x_0 + t e."""
    at = t.view(-1, 1, 1, 1)
    return (1 - at) * clean + at * noise


def loss(pipe: StableDiffusion3Pipeline, clean: Tensor, ids: Tensor) -> Tensor:
    """Flow matching: v = e - x_0, logit-normal t."""
    noise = torch.randn_like(clean)
    t = torch.randn(len(clean)).sigmoid()
    found = velocity(pipe.transformer, mixed(clean, noise, t), t, *condition(pipe, ids))
    return functional.mse_loss(found, noise - clean)


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 64, scene_count: int = 60_000
) -> None:
    """Trains on the latents of ``folder/vae`` and saves a whole pipeline there every 500 steps."""
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    pipe = build(vae)
    images, records = scenes.dataset(scene_count, seed + 1)
    latents = encode(vae, images)
    ids = token_ids(pipe, [record["prompt"] for record in records])
    shares = torch.tensor([TASK_SHARE[record["tag"]] for record in records])
    empty = token_ids(pipe, [""])
    trained = [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]
    ema = Ema(trained, 0.999)
    parameters = [p for module in trained for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 300))
    running = 0.0
    for step, say in progress("flow", steps):
        picked = torch.multinomial(shares, batch)
        dropped = torch.rand(batch, 1) < CAPTION_DROPOUT
        value = loss(pipe, latents[picked], torch.where(dropped, empty, ids[picked]))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        running += (value.item() - running) / min(step + 1, 200)
        if (step + 1) % 100 == 0:
            say(f"loss {running:.4f}")
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(pipe, ema, folder)


def distill(
    folder: Path,
    *,
    seed: int,
    steps: int,
    guidance: float,
    batch: int = 64,
    scene_count: int = 20_000,
) -> None:
    """Teaches the transformer of ``folder`` its own guided velocity, as FLUX.1-dev's was taught.

    The student needs one pass where classifier-free guidance needs two, so that everything that is
    trained on it costs half. Text encoders stay as they are. Saves as ``train`` does.
    """
    torch.manual_seed(seed)
    pipe = load(folder)
    teacher = deepcopy(pipe.transformer).requires_grad_(False)
    images, records = scenes.dataset(scene_count, seed)
    latents = encode(pipe.vae, images)
    ids = token_ids(pipe, [record["prompt"] for record in records])
    shares = torch.tensor([TASK_SHARE[record["tag"]] for record in records])
    with torch.no_grad():
        empty = condition(pipe, token_ids(pipe, [""]))
    modules = [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]
    ema = Ema(modules, 0.998)
    optimizer = torch.optim.AdamW(pipe.transformer.parameters(), 3e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 100))
    running = 0.0
    for step, say in progress("distill", steps):
        picked = torch.multinomial(shares, batch)
        t = torch.randn(batch).sigmoid()
        noisy = mixed(latents[picked], torch.randn_like(latents[picked]), t)
        with torch.no_grad():
            words = condition(pipe, ids[picked])
            nothing, pooled = (part.expand(batch, *part.shape[1:]) for part in empty)
            blank = velocity(teacher, noisy, t, nothing, pooled)
            goal = blank + guidance * (velocity(teacher, noisy, t, *words) - blank)
        value = functional.mse_loss(velocity(pipe.transformer, noisy, t, *words), goal)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(pipe.transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        running += (value.item() - running) / min(step + 1, 200)
        if (step + 1) % 100 == 0:
            say(f"loss {running:.4f}")
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save(pipe, ema, folder)


def load(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of ``folder`` in float32, without T5."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: StableDiffusion3Pipeline, ema: Ema, folder: Path) -> None:
    """Writes the pipeline with the averaged weights in float16; ``pipe`` stays as it is."""
    half = build(copy_of(pipe.vae))
    for name, average in zip(
        ("transformer", "text_encoder", "text_encoder_2"), ema.average, strict=True
    ):
        getattr(half, name).load_state_dict(average.state_dict())
    half.to(dtype=torch.float16)
    half.save_pretrained(folder)
