"""The VAE decoder that the model families share."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percent_ray.models import pretrained
from percent_ray.recipe import tree


def load_decoder(model: tree.Model, *, device: torch.device) -> "VaeDecoder":
    """The VAE of `model.path`, and no other part of it; on the meta device without weights."""
    from diffusers import AutoencoderKL

    # float16 overflows in these VAEs, and on the CPU half precision only costs time.
    whole = device.type == "cpu" or model.dtype == "float16"
    dtype = torch.float32 if whole else getattr(torch, model.dtype)
    part = {"part": "model.path: vae", "subfolder": "vae"}
    if device.type == "meta":
        vae = pretrained.skeleton(AutoencoderKL, model.folder, **part, dtype=dtype)
    else:
        vae = pretrained.load(AutoencoderKL, model.folder, **part, torch_dtype=dtype)
    return VaeDecoder(vae.requires_grad_(False).to(device), model.path)


class VaeDecoder:
    """A `Decoder` (models/base.py) of an AutoencoderKL whose latents are shifted and scaled."""

    def __init__(self, vae: Any, folder: str = "") -> None:
        self._folder = folder
        # The layout that convolutions are fastest in, on CPUs as on GPUs.
        self.vae = vae.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "N C H W"]) -> UInt8[Tensor, "N 3 h w"]:
        """Images of scaled latents on the VAE's device, rounded to uint8 as they would be saved.
        Raises ValueError for pixels that are not finite, which uint8 would hide."""
        images = self.pixels(latents)
        if not images.isfinite().all():
            raise ValueError("the VAE decoder gave pixels that are not finite")
        return images.mul(0.5).add(0.5).clamp(0, 1).mul(255).round().to(torch.uint8)

    def pixels(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 h w"]:
        """What the VAE makes of them, about -1 to 1, in float32."""
        c = self.vae.config
        latents = latents.to(self.vae.device, torch.float32) / c.scaling_factor + c.shift_factor
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def describe(self) -> str:
        """What was loaded."""
        return f"decoder: {pretrained.described(self._folder, self.vae, subfolder='vae')}"
