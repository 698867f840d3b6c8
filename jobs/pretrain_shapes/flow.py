"""Trains the flow transformer and its two text encoders jointly, by flow matching on latents."""

from copy import deepcopy
from pathlib import Path
from typing import Final

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection

from jobs.pretrain_shapes.common import Rates, fit
from jobs.pretrain_shapes.text import build_tokenizer, text_config
from jobs.pretrain_shapes.vae import copy_of, encode
from percent_ray.shapes import scenes

TEXT_WIDTH: Final = 64
CAPTION_DROPOUT: Final = 0.1
TASK_SHARE: Final = dict(
    single_object=0.10, two_object=0.20, counting=0.15, colors=0.10, position=0.25, color_attr=0.20
)
"""Of the training scenes: what has to be bound to what takes longest to learn."""
PATCH: Final = 2
"""As in SD3: 16 image tokens, a third of the time of 64."""
T5_TOKENS: Final = 1
"""``max_sequence_length`` of the pipeline: zeros that stand for the absent T5 encoder."""
GUIDANCE: Final = 3.0
"""Classifier-free guidance that is distilled into the transformer."""
RATES: Final = Rates(
    lr=1e-3, weight_decay=0.01, decay=0.999, beta2=0.99, warmup=300, save_every=500
)
DISTILL_RATES: Final = Rates(lr=3e-4, weight_decay=0.01, decay=0.998, save_every=500)


def build(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """An untrained pipeline around ``vae``, with two text encoders and no T5."""
    config = text_config(TEXT_WIDTH, layers=3)
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
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=build_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=build_tokenizer(),
        text_encoder_3=None,  # type: ignore[arg-type]
        tokenizer_3=None,  # type: ignore[arg-type]
    )


def networks(pipe: StableDiffusion3Pipeline) -> list[nn.Module]:
    """What flow matching trains: the transformer and both text encoders."""
    return [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]


def token_ids(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> Tensor:
    """int64 [N, 12]; both tokenizers are the same."""
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids


def condition(pipe: StableDiffusion3Pipeline, ids: Tensor) -> tuple[Tensor, Tensor]:
    """``pipe.encode_prompt`` with gradients, from token ids.

    Returns the context float32 [N, 12+1, 128] (penultimate hidden states side by side, then the
    zeros of the absent T5) and the pooled embeddings float32 [N, 128].
    """
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    encoded = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    hidden = torch.cat([out.hidden_states[-2] for out in encoded], dim=-1)
    pooled = torch.cat([out.text_embeds for out in encoded], dim=-1)
    return functional.pad(hidden, (0, 0, 0, T5_TOKENS)), pooled


def velocity(
    transformer: SD3Transformer2DModel, noisy: Tensor, t: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """v of latents [N,C,8,8] at t [N], under what ``condition`` returns."""
    return transformer(noisy, context, pooled, 1000 * t, return_dict=False)[0]


def mixed(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1-t) x_0 + t e."""
    at = t.view(-1, 1, 1, 1)
    return (1 - at) * clean + at * noise


def examples(
    pipe: StableDiffusion3Pipeline, count: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of N scenes: latents float32 [N,C,8,8], token ids int64 [N,12], shares in the draw [N]."""
    images, records = scenes.dataset(count, seed)
    latents = encode(pipe.vae, images)
    ids = token_ids(pipe, [record["prompt"] for record in records])
    return latents, ids, torch.tensor([TASK_SHARE[record["tag"]] for record in records])


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 64, scene_count: int = 60_000
) -> None:
    """Trains on the latents of ``folder/vae`` and saves a whole pipeline to ``folder``."""
    torch.manual_seed(seed)
    pipe = build(AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32))
    latents, ids, shares = examples(pipe, scene_count, seed + 1)
    empty = token_ids(pipe, [""])

    def loss(_: int) -> tuple[Tensor, str]:
        picked = torch.multinomial(shares, batch)
        dropped = torch.rand(batch, 1) < CAPTION_DROPOUT
        clean, noise = latents[picked], torch.randn_like(latents[picked])
        t = torch.randn(batch).sigmoid()
        words = condition(pipe, torch.where(dropped, empty, ids[picked]))
        predicted = velocity(pipe.transformer, mixed(clean, noise, t), t, *words)
        return functional.mse_loss(predicted, noise - clean), ""

    fit("flow", networks(pipe), loss, lambda means: save(pipe, means, folder), steps, RATES)


def distill(
    folder: Path, *, seed: int, steps: int, batch: int = 64, scene_count: int = 20_000
) -> None:
    """Teaches the transformer of ``folder`` its own guided velocity, as FLUX.1-dev's was taught.

    The student needs one pass where classifier-free guidance needs two, so that everything that is
    trained on it costs half. Text encoders stay as they are. Saves as ``train`` does.
    """
    torch.manual_seed(seed)
    pipe = load(folder)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.requires_grad_(False)
    teacher = deepcopy(pipe.transformer).requires_grad_(False)
    latents, ids, shares = examples(pipe, scene_count, seed)
    empty = condition(pipe, token_ids(pipe, [""]))
    blank = [part.expand(batch, *part.shape[1:]) for part in empty]

    def loss(_: int) -> tuple[Tensor, str]:
        picked = torch.multinomial(shares, batch)
        t = torch.randn(batch).sigmoid()
        noisy = mixed(latents[picked], torch.randn_like(latents[picked]), t)
        words = condition(pipe, ids[picked])
        free = velocity(teacher, noisy, t, *blank)
        goal = free + GUIDANCE * (velocity(teacher, noisy, t, *words) - free)
        return functional.mse_loss(velocity(pipe.transformer, noisy, t, *words), goal), ""

    trained = networks(pipe)
    fit("distill", trained, loss, lambda means: save(pipe, means, folder), steps, DISTILL_RATES)


def load(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline of ``folder`` in float32, without T5."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: StableDiffusion3Pipeline, averages: list[nn.Module], folder: Path) -> None:
    """Writes ``pipe`` with ``averages`` of its networks in float16; ``pipe`` stays as it is."""
    half = build(copy_of(pipe.vae))
    for network, average in zip(networks(half), averages, strict=True):
        network.load_state_dict(average.state_dict())
    half.to(dtype=torch.float16)
    half.save_pretrained(folder)
