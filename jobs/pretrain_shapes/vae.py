"""Trains the AutoencoderKL: 32x32 RGB to latents of 8x8, about unit normal after scaling."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.pretrain_shapes.common import HELD_OUT_SEED, Rates, fit, psnr, to_pixels, to_unit
from percent_ray.shapes import scenes

LATENT_CHANNELS: Final = 8
KL_WEIGHT: Final = 2e-3
"""Relative to a pixel loss that is a mean over pixels; keeps the posterior's std near 0.2."""
RATES: Final = Rates(lr=2e-3, weight_decay=1e-4, decay=0.995, beta2=0.99)


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


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 32, scene_count: int = 20_000
) -> None:
    """Saves the averaged weights (float16) with measured scaling; prints the held-out PSNR."""
    torch.manual_seed(seed)
    vae = build()
    images, _ = scenes.dataset(scene_count, seed)
    held_out, _ = scenes.dataset(64, HELD_OUT_SEED)
    draw = np.random.default_rng(seed)

    def loss(_: int) -> tuple[Tensor, str]:
        shown = to_unit(images[draw.integers(len(images), size=batch)])
        posterior = posterior_of(vae, shown)
        decoded = decoded_of(vae, posterior.sample())
        pixels = functional.l1_loss(decoded, shown) + 4 * functional.mse_loss(decoded, shown)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return pixels + KL_WEIGHT * kl, ""

    def save(averages: list[AutoencoderKL]) -> None:
        average = averages[0]
        print(f"psnr {psnr(held_out, reconstruct(average, held_out)):.2f}")
        latents = torch.cat([part.sample() for part in posteriors(average, images[:2000])])
        shift, scale = latents.mean().item(), 1.0 / latents.std().item()
        average.register_to_config(shift_factor=round(shift, 5), scaling_factor=round(scale, 5))
        copy_of(average).half().save_pretrained(folder)

    fit("vae", [vae], loss, save, steps, RATES)


def copy_of(vae: AutoencoderKL) -> AutoencoderKL:
    """The same weights and scaling in a fresh model, whose config names no folder."""
    copy = build()
    copy.load_state_dict(vae.state_dict())
    copy.register_to_config(**{k: vae.config[k] for k in ("shift_factor", "scaling_factor")})
    return copy


@torch.no_grad()
def posteriors(vae: AutoencoderKL, images: NDArray[np.uint8]) -> Iterator[Any]:
    """``posterior_of`` uint8 [N,3,32,32], at most 250 pictures at a time."""
    for start in range(0, len(images), 250):
        yield posterior_of(vae, to_unit(images[start : start + 250]))


def encode(vae: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N,3,32,32] to scaled posterior means, float32 [N,C,8,8]."""
    means = torch.cat([posterior.mean for posterior in posteriors(vae, images)])
    return (means - vae.config["shift_factor"]) * vae.config["scaling_factor"]


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode to the mean and decode; uint8 in and out."""
    pieces = posteriors(vae, images)
    return np.concatenate([to_pixels(decoded_of(vae, piece.mean)) for piece in pieces])
