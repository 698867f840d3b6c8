"""Pictures of fixed prompts with fixed noise: what a model is judged by."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.models.base import Decoder, Policy
from percent_ray.models.solver import draw
from percent_ray.types import Prompt


@dataclass(frozen=True, slots=True)
class Pictures:
    """The K pictures of one prompt."""

    prompt: Prompt
    images: UInt8[Tensor, "K 3 H W"]
    latents: Float32[Tensor, "K C h w"] | None = None
    """What they were decoded from; None of a pipeline that only shows its pictures."""


class Source(Protocol):
    """Whatever draws the pictures of a row: a policy of ours or a pipeline of diffusers."""

    def draw(self, prompt: Prompt, number: int, *, images: int, seed: int) -> Pictures:
        """`images` pictures, on the CPU. The noise of picture k is a function of (`seed`, `number`
        of the prompt, k): two models of one kind are compared on the same noise, picture by
        picture."""
        ...

    def describe(self) -> str:
        """What was loaded and how it draws, in one line."""
        ...


class PolicySource:
    """Draws by the plain ODE (Euler) in `steps` steps, `batch_size` pictures at a time."""

    def __init__(self, policy: Policy, decoder: Decoder, *, steps: int, batch_size: int) -> None:
        self._policy = policy
        self._decoder = decoder
        self._steps = steps
        self._batch_size = batch_size

    @torch.no_grad()
    def draw(self, prompt: Prompt, number: int, *, images: int, seed: int) -> Pictures:
        """As `Source.draw`, with latents."""
        latents = draw(
            self._policy,
            self._policy.encode([prompt.text]),
            seed=seed,
            group_id=number,
            images=images,
            steps=self._steps,
            batch_size=self._batch_size,
            solver="euler",
        )
        parts = latents.split(self._batch_size)
        pixels = torch.cat([self._decoder.decode(part).cpu() for part in parts])
        return Pictures(prompt, pixels, latents.cpu())

    def describe(self) -> str:
        """As `Source.describe`."""
        return f"{self._policy.describe()}; {self._decoder.describe()}; {self._steps} ODE steps"
