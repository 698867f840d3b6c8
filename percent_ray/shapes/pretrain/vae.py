"""Trains the AutoencoderKL: 32x32 RGB to latents of 8x8, about unit normal after scaling."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from percent_ray.shapes import scenes
from percent_ray.shapes.pretrain.common import (
    HELD_OUT_SEED,
    Ema,
    progress,
    psnr,
    to_pixels,
    to_unit,
    warmup_cosine,
)

LATENT_CHANNELS: Final = 8
KL_WEIGHT: Final = 2e-3
"""Relative to a pixel loss that is a mean over pixels; keeps the posterior's std near 0.2."""


def build() -> AutoencoderKL:
    """An untrained autoencoder; no attention, which 8x8 latents of plain scenes do not need."""
    # diffusers annotates these as tuples of one.
    levels: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 64),
    }
    return AutoencoderKL(
        **levels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def posterior_of(vae: AutoencoderKL, images: Tensor) -> Any:
    """The Gaussian of latents, before scaling, of pictures in -1..1."""
    return vae.encode(images, return_dict=False)[0]  # type: ignore[arg-type]


def decoded_of(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures in about -1..1 of latents before scaling."""
    return vae.decode(latents, return_dict=False)[0]  # type: ignore[arg-type]


def _loss(vae: AutoencoderKL, images: Tensor) -> Tensor:
    posterior = posterior_of(vae, images)
    decoded = decoded_of(vae, posterior.sample())
    pixels = functional.l1_loss(decoded, images) + 4 * functional.mse_loss(decoded, images)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return pixels + KL_WEIGHT * kl


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 32, scene_count: int = 20_000
) -> None:
    """Trains for ``steps`` and saves the averaged weights (float16) with measured scaling."""
    torch.manual_seed(seed)
    vae = build()
    images, _ = scenes.dataset(scene_count, seed)
    ema = Ema([vae], 0.995)
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 100))
    draw = np.random.default_rng(seed)
    for step, say in progress("vae", steps):
        picked = to_unit(images[draw.integers(len(images), size=batch)])
        loss = _loss(vae, picked)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            average = ema.average[0]
            held_out, _ = scenes.dataset(64, HELD_OUT_SEED)
            say(f"loss {loss.item():.4f} psnr {psnr(held_out, reconstruct(average, held_out)):.2f}")
            _save(average, images[:2000], folder)


def _save(vae: AutoencoderKL, images: NDArray[np.uint8], folder: Path) -> None:
    with torch.no_grad():
        latents = torch.cat([posterior_of(vae, to_unit(b)).sample() for b in batches(images)])
    shift, scale = latents.mean().item(), 1.0 / latents.std().item()
    vae.register_to_config(shift_factor=round(shift, 5), scaling_factor=round(scale, 5))
    copy_of(vae).half().save_pretrained(folder)


def copy_of(vae: AutoencoderKL) -> AutoencoderKL:
    """The same weights and scaling in a fresh model, whose config names no folder."""
    copy = build()
    copy.load_state_dict(vae.state_dict())
    copy.register_to_config(**{k: vae.config[k] for k in ("shift_factor", "scaling_factor")})
    return copy


def batches(images: NDArray[np.uint8], size: int = 250) -> list[NDArray[np.uint8]]:
    """Consecutive pieces of at most ``size`` images."""
    return [images[i : i + size] for i in range(0, len(images), size)]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N,3,32,32] to scaled posterior means, float32 [N,C,8,8]."""
    means = [posterior_of(vae, to_unit(piece)).mean for piece in batches(images)]
    return (torch.cat(means) - vae.config["shift_factor"]) * vae.config["scaling_factor"]


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> NDArray[np.uint8]:
    """Scaled latents float32 [N,C,8,8] to uint8 [N,3,32,32]."""
    raw = latents / vae.config["scaling_factor"] + vae.config["shift_factor"]
    return np.concatenate([to_pixels(decoded_of(vae, piece)) for piece in raw.split(250)])


def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode to the mean and decode; uint8 in and out."""
    with torch.no_grad():
        means = [posterior_of(vae, to_unit(piece)).mean for piece in batches(images)]
        return np.concatenate([to_pixels(decoded_of(vae, mean)) for mean in means])
