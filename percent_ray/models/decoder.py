"""The decoders that the model families share: the VAE's, and a tiny one of the same latents."""

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percent_ray.models import pretrained
from percent_ray.recipe import tree
from percent_ray.recipe.paths import locate

EMBEDDED: Final = {"shapes/sd3": "shapes/tiny"}
"""Tiny decoders of the embedded world, by `model.path`."""


def load_decoder(model: tree.Model, *, device: torch.device) -> "VaeDecoder":
    """The VAE of `model.path`, and no other part of it; on the meta device without weights."""
    from diffusers import AutoencoderKL

    part = {"part": "model.path: vae", "subfolder": "vae"}
    vae = _read(AutoencoderKL, model, model.folder, device, part)
    for name in ("scaling_factor", "shift_factor"):
        value = vae.config.get(name)
        if not (isinstance(value, int | float) and math.isfinite(value)) or (
            name == "scaling_factor" and value <= 0
        ):
            raise ValueError(
                f"model.path: vae of {model.path}: its config.json has {name} {value}, expected a "
                "number, of scaling_factor one above 0; set it as it was published"
            )
    return VaeDecoder(vae, model.path)


def load_tiny(model: tree.Model, path: str, *, default: str, device: torch.device) -> "TinyDecoder":
    """The AutoencoderTiny of `path`, or where that is empty of the embedded world or the family's
    `default`; on the meta device without weights.

    Raises ValueError, in one line, where it cannot be read whole, and where its latents are not
    those of the VAE of `model.path`.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny

    folder = locate(tiny_path(model, path, default))
    part = {"part": "perceptual.tiny_path: decoder", "subfolder": ""}
    ours = pretrained.config(AutoencoderTiny, folder, **part)
    vae = pretrained.config(AutoencoderKL, model.folder, part="model.path: vae", subfolder="vae")
    found = layout(ours, of=f"{part['part']} of {folder}")
    needed = layout(vae, of=f"model.path: vae of {model.path}")
    if found != needed:
        raise ValueError(
            f"{part['part']} of {folder} has {found[0]} latent channels and scales by {found[1]}, "
            f"the VAE of {model.path} has {needed[0]} and scales by {needed[1]}; give one of its "
            "latents, or set perceptual.decoder to full"
        )
    return TinyDecoder(_read(AutoencoderTiny, model, folder, device, part), folder)


def tiny_path(model: tree.Model, path: str, default: str) -> str:
    """`path`, or where that is empty the embedded world's or the family's `default`."""
    return path or EMBEDDED.get(model.path, default)


def layout(config: Mapping[str, Any], *, of: str = "vae") -> tuple[int, int]:
    """Channels of a latent, and pixels on a side of one of its own. Raises ValueError, that begins
    with `of`, where the config.json does not give them."""
    tiny = "num_decoder_blocks" in config
    blocks = "num_decoder_blocks" if tiny else "block_out_channels"
    stages, channels = config[blocks], config["latent_channels"]
    by = config["upsampling_scaling_factor"] if tiny else 2
    if not isinstance(stages, list | tuple) or not stages or not _counts(channels, by, *stages):
        raise ValueError(
            f"{of}: its config.json gives {blocks} {stages!r} and latent_channels {channels!r}; "
            "give it as save_pretrained writes it"
        )
    return channels, by ** (len(stages) - 1)


def _counts(*values: object) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)


def _read(
    kind: Any, model: tree.Model, folder: str, device: torch.device, part: dict[str, str]
) -> Any:
    # float16 overflows in these VAEs, and on the CPU half precision only costs time.
    whole = device.type == "cpu" or model.dtype == "float16"
    dtype = torch.float32 if whole else getattr(torch, model.dtype)
    if device.type == "meta":
        return pretrained.skeleton(kind, folder, **part, dtype=dtype)
    vae = pretrained.load(kind, folder, **part, torch_dtype=dtype)
    return vae.requires_grad_(False).to(device)


class VaeDecoder:
    """A `Decoder` (models/base.py) of an AutoencoderKL whose latents are shifted and scaled."""

    def __init__(self, vae: Any, folder: str = "") -> None:
        self._folder = folder
        # The layout that convolutions are fastest in, on CPUs as on GPUs.
        self.vae = vae.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "N C H W"]) -> UInt8[Tensor, "N 3 h w"]:
        """Images of scaled latents on the VAE's device, rounded to uint8 as they would be saved.
        Raises ValueError for pixels that are not finite, which uint8 would hide, and where they are
        not because the latents are not."""
        images = self.pixels(latents)
        if not images.isfinite().all():
            bad = [n for n, latent in enumerate(latents) if not latent.isfinite().all()]
            raise ValueError(
                f"the policy's latents of {len(bad)} of {len(latents)} images are NaN or infinite "
                f"(the first is image {bad[0]}), before the decoder: its weights are, or its "
                "activations overflow; set model.dtype float32 or bfloat16, or a lower learner.lr "
                "where updates have done it"
                if bad
                else f"{type(self.vae).__name__} in {self.vae.dtype} gave pixels that are not "
                "finite of latents that are; give another vae, or set model.dtype float32"
            )
        return images.mul(0.5).add(0.5).clamp(0, 1).mul(255).round().to(torch.uint8)

    def pixels(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 h w"]:
        """What the VAE makes of them, about -1 to 1, in float32."""
        c = self.vae.config
        latents = latents.to(self.vae.device, torch.float32) / c.scaling_factor + c.shift_factor
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def blank(self, size: tuple[int, int]) -> Float[Tensor, "1 C H W"]:
        """The latent of zeros of an image of that height and width, on the CPU."""
        channels, scale = layout(self.vae.config)
        return torch.zeros(1, channels, *(side // scale for side in size))

    def describe(self) -> str:
        """What was loaded."""
        return f"decoder: {pretrained.described(self._folder, self.vae, subfolder='vae')}"


class TinyDecoder(VaeDecoder):
    """A `Decoder` of an AutoencoderTiny, which takes the scaled latents that the policy draws."""

    def pixels(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 h w"]:
        """As the VAE's; the config's own scale and shift, if it has any, are not applied."""
        latents = latents.to(self.vae.device, self.vae.dtype)
        return self.vae.decode(latents, return_dict=False)[0].float()

    def describe(self) -> str:
        """What was loaded, and what for."""
        return f"decoder of scored transitions: {pretrained.described(self._folder, self.vae)}"
