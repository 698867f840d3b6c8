"""What the model families share: a diffusers folder's index, the size of a latent, the decoder."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percent_ray import config


def index(model: config.Model, pipeline: str) -> Mapping[str, Any]:
    """model_index.json of `model.path`. Raises ValueError where that is not a `pipeline`."""
    from diffusers import DiffusionPipeline

    try:
        found: Any = DiffusionPipeline.load_config(model.folder)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.path: {model.path} is no diffusers pipeline: {reason}") from None
    if found["_class_name"] != pipeline:
        raise ValueError(
            f"model.path: {model.path} is a {found['_class_name']}, not a {pipeline}; "
            "set model.path or model.family"
        )
    return found


def latent_side(model: config.Model, *, patch: int, largest: int) -> int:
    """Height and width of a latent at `model.resolution`.

    `patch` is the transformer's patch size in latent pixels, `largest` the most patches on a side.
    Raises ValueError for a resolution that does not fit.
    """
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.load_config(model.folder, subfolder="vae")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = scale * patch
    if model.resolution % multiple or model.resolution > multiple * largest:
        raise ValueError(
            f"model.resolution {model.resolution} does not fit this model; "
            f"set a multiple of {multiple} up to {multiple * largest}"
        )
    return model.resolution // scale


def load_decoder(model: config.Model, *, device: torch.device) -> "VaeDecoder":
    """The VAE of `model.path`, and no other part of it."""
    from diffusers import AutoencoderKL

    # float16 overflows in these VAEs, and on the CPU half precision only costs time.
    whole = device.type == "cpu" or model.dtype == "float16"
    vae: Any = AutoencoderKL.from_pretrained(
        model.folder,
        subfolder="vae",
        torch_dtype=torch.float32 if whole else getattr(torch, model.dtype),
        use_safetensors=True,
    )
    return VaeDecoder(vae.requires_grad_(False).to(device))


class VaeDecoder:
    """A `Decoder` (models/base.py) of an AutoencoderKL whose latents are shifted and scaled."""

    def __init__(self, vae: Any) -> None:
        # The layout that convolutions are fastest in, on CPUs as on GPUs.
        self._vae = vae.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "N C H W"]) -> UInt8[Tensor, "N 3 h w"]:
        """Images of scaled latents on the VAE's device, rounded to uint8 as they would be saved.
        Raises ValueError for pixels that are not finite, which uint8 would hide."""
        c = self._vae.config
        latents = latents.to(self._vae.device, torch.float32) / c.scaling_factor + c.shift_factor
        images = self._vae.decode(latents.to(self._vae.dtype), return_dict=False)[0].float()
        if not images.isfinite().all():
            raise ValueError("the VAE decoder gave pixels that are not finite")
        return images.mul(0.5).add(0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
