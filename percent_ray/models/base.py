"""What the roles ask of a text-to-image flow model. One model family is one module in this folder.

A family's module has two functions, found by the module's name (`model.family` in the recipe):

    load_policy(model: config.Model, *, seed: int, device: torch.device, text: bool) -> Policy
    load_decoder(model: config.Model, *, device: torch.device) -> Decoder

`text=False` leaves the text encoders out: the learner replays stored conditions.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Protocol

from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from percent_ray import models

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


class Decoder(Protocol):
    """A frozen VAE decoder."""

    def decode(self, latents: Float[Tensor, "N C H W"]) -> UInt8[Tensor, "N 3 h w"]:
        """Images of scaled latents, rounded to uint8 as they would be saved."""
        ...


def family(name: str) -> ModuleType:
    """The module of a model family. Raises ValueError that lists the known families."""
    known = sorted(_modules())
    if name not in known:
        raise ValueError(f"model.family: unknown {name!r}; known are {', '.join(known)}")
    return importlib.import_module(f"{models.__name__}.{name}")


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(models.__path__):
        if module.name not in ("base", "lora", "parts"):
            yield module.name
