"""Random views of pictures: the same scene again, or a spoiled version of it."""

import math
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from jobs.pretrain_shapes.vae import decoded_of, posterior_of

CORRUPTIONS: Final = ("blur", "noise", "melt")


def augment(images: Tensor) -> Tensor:
    """The same scenes seen again: small shift and zoom, slight change of light, weak noise.

    float32 [N,3,H,W] in -1..1, in and out. Colours, shapes and rough places stay recognisable.
    """
    n = len(images)
    zoom = torch.empty(n).uniform_(0.92, 1.08)
    shift = torch.empty(n, 2).uniform_(-0.08, 0.08)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = zoom
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain = torch.empty(n, 3, 1, 1).uniform_(0.92, 1.08)
    lift = torch.empty(n, 1, 1, 1).uniform_(-0.08, 0.08)
    noise = torch.empty(n, 1, 1, 1).uniform_(0, 0.08) * torch.randn_like(images)
    return (moved * gain + lift + noise).clamp(-1, 1)


def blur(images: Tensor) -> Tensor:
    """Gaussian blur of 1 to 2 pixels, one strength for the batch."""
    sigma = 1.0 + float(torch.rand(()))
    reach = math.ceil(2.5 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, taps[:, :, None, :], groups=3)
    return functional.conv2d(across, taps[:, :, :, None], groups=3)


def speckle(images: Tensor) -> Tensor:
    """Pixel noise of 0.15 to 0.5 of the half range."""
    strength = torch.empty(len(images), 1, 1, 1).uniform_(0.15, 0.5)
    return (images + strength * torch.randn_like(images)).clamp(-1, 1)


@torch.no_grad()
def through_vae(vae: AutoencoderKL, images: Tensor, low: float, high: float) -> Tensor:
    """Encode, mix the latents with a share of noise in [low, high], decode."""
    mean = posterior_of(vae, images).mean
    t = torch.empty(len(images), 1, 1, 1).uniform_(low, high)
    std = 1.0 / vae.config["scaling_factor"]
    mixed = (1 - t) * mean + t * std * torch.randn_like(mean)
    return decoded_of(vae, mixed).clamp(-1, 1)


def corrupt(vae: AutoencoderKL, images: Tensor, kind: str) -> Tensor:
    """Pictures spoiled in one way of CORRUPTIONS; float32 [N,3,H,W] in -1..1."""
    if kind == "blur":
        return blur(images)
    if kind == "noise":
        return speckle(images)
    return through_vae(vae, images, 0.25, 0.6)
