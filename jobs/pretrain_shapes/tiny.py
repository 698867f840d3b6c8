"""Trains an AutoencoderTiny that decodes the VAE's scaled latents at a fraction of its cost, as
TAESD does for published models: on the latents of clean pictures only."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.pretrain_shapes import vae
from jobs.pretrain_shapes.common import HELD_OUT_SEED, Rates, fit, psnr, to_pixels, to_unit
from percent_ray.shapes import scenes

WIDTH: Final = 16
RATES: Final = Rates(lr=2e-3, weight_decay=1e-4, decay=0.995, beta2=0.99)


def build() -> AutoencoderTiny:
    """An untrained one of a quarter of the VAE's operations; TAESD's blocks with a stage less."""
    # diffusers annotates these as tuples of one.
    levels: dict[str, Any] = {
        "encoder_block_out_channels": (WIDTH,) * 3,
        "decoder_block_out_channels": (WIDTH,) * 3,
        "num_encoder_blocks": (1, 3, 3),
        "num_decoder_blocks": (3, 3, 1),
    }
    return AutoencoderTiny(**levels, latent_channels=vae.LATENT_CHANNELS)


def encoded_of(tiny: AutoencoderTiny, images: Tensor) -> Tensor:
    """Scaled latents of pictures in -1..1."""
    return tiny.encode(images, return_dict=False)[0]  # type: ignore[arg-type]


def decoded_of(tiny: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures in about -1..1 of scaled latents."""
    return tiny.decode(latents, return_dict=False)[0]  # type: ignore[arg-type]


def train(
    folder: Path,
    *,
    autoencoder: AutoencoderKL,
    seed: int,
    steps: int,
    batch: int = 32,
    scene_count: int = 20_000,
) -> None:
    """Saves the averaged weights (float16); prints the held-out PSNR against the VAE's decode.

    The decoder learns the VAE's pictures of the VAE's latents, the encoder those latents.
    """
    torch.manual_seed(seed)
    tiny = build()
    images, _ = scenes.dataset(scene_count, seed)
    latents, decoded = vae.encode(autoencoder, images), vae.reconstruct(autoencoder, images)
    held_out, _ = scenes.dataset(64, HELD_OUT_SEED)
    draw = np.random.default_rng(seed)

    def loss(_: int) -> tuple[Tensor, str]:
        chosen = draw.integers(len(images), size=batch)
        wanted = to_unit(decoded[chosen])
        made = decoded_of(tiny, latents[chosen])
        pixels = functional.l1_loss(made, wanted) + 4 * functional.mse_loss(made, wanted)
        encoded = encoded_of(tiny, to_unit(images[chosen]))
        return pixels + functional.mse_loss(encoded, latents[chosen]), ""

    def save(averages: list[AutoencoderTiny]) -> None:
        print(f"psnr {agreement(averages[0], autoencoder, held_out):.2f}")
        copy = build()
        copy.load_state_dict(averages[0].state_dict())
        copy.half().save_pretrained(folder)

    fit("tiny", [tiny], loss, save, steps, RATES)


@torch.no_grad()
def agreement(
    tiny: AutoencoderTiny, autoencoder: AutoencoderKL, images: NDArray[np.uint8]
) -> float:
    """Mean PSNR in dB of its pictures against the VAE's own of the same latents, those of uint8
    [N,3,32,32]."""
    made = to_pixels(decoded_of(tiny, vae.encode(autoencoder, images)))
    return psnr(vae.reconstruct(autoencoder, images), made)
