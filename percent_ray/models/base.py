"""What the roles ask of a text-to-image flow model. One model family is one module in this folder.

A family's module has two functions, found by the module's name (`model.family` in the recipe):

    load_policy(model: tree.Model, *, seed: int, device: torch.device, text: bool) -> Policy
    load_decoder(model: tree.Model, *, device: torch.device) -> Decoder

and `TINY`, the hub id of an AutoencoderTiny that decodes its latents. `text=False` leaves the text
encoders out: the learner replays stored conditions.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Protocol

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from percent_ray.recipe.discover import FAMILIES

Condition = dict[str, Tensor]
"""What the text encoders make of prompts, negative prompt included. Every tensor is [N, ...]."""


class Policy(Protocol):
    """A velocity network with its text encoders. The same `velocity` draws and replays."""

    module: nn.Module
    """The network that is trained (with its LoRA adapter, where it has one). `velocity` calls it
    through this attribute, which a learner engine may replace by its own wrapper."""
    latent_shape: tuple[int, int, int]
    """C, H, W of one latent."""

    def encode(self, texts: Sequence[str]) -> Condition:
        """Conditions of N prompts, in the model's dtype on the model's device."""
        ...

    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor of a prompt's condition, without N."""
        ...

    def velocity(
        self, latents: Float[Tensor, "B C H W"], sigma: Float32[Tensor, " B"], condition: Condition
    ) -> Float32[Tensor, "B C H W"]:
        """Guided velocity v(x, sigma, c) in float32. Classifier-free guidance is applied here; its
        unconditional branch carries no gradient, as in Flow-GRPO."""
        ...

    def sigmas(self, steps: int) -> Float32[Tensor, " T+1"]:
        """The model's own schedule for `steps` steps: 1 (noise) down to 0 (image), on the CPU."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, `velocity` is that of the model before training."""
        ...

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The trained parameters by name: the adapter's, or all of them."""
        ...

    def save(self, folder: str, weights: Mapping[str, Tensor]) -> None:
        """Write `weights` (by the names of `trainable`) as a user would load them: a diffusers LoRA
        file, or a transformer folder, in safetensors."""
        ...

    def load(self, folder: str) -> None:
        """Take the weights that `save` wrote."""
        ...

    def describe(self) -> str:
        """What was loaded and what of it is trained, for the start of a run; one line."""
        ...


class Decoder(Protocol):
    """A frozen VAE decoder, or a tiny one of the same latents."""

    def decode(self, latents: Float[Tensor, "N C H W"]) -> UInt8[Tensor, "N 3 h w"]:
        """Images of scaled latents, rounded to uint8 as they would be saved."""
        ...

    def blank(self, size: tuple[int, int]) -> Float[Tensor, "1 C H W"]:
        """The latent of zeros of an image of that height and width, on the CPU."""
        ...

    def describe(self) -> str:
        """What was loaded, for the start of a run; one line."""
        ...


def family(name: str) -> ModuleType:
    """The module of a model family. Raises ValueError that lists the known families."""
    return FAMILIES.module(name, key="model.family")


def best_device() -> torch.device:
    """Where a role's models live: the first GPU that this process may see, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
