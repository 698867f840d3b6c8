"""Pictures of fixed prompts with fixed noise: what a policy is judged by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    latents: Float32[Tensor, "K C h w"]


@torch.no_grad()
def generate(
    policy: Policy,
    decoder: Decoder,
    prompts: Sequence[Prompt],
    *,
    images: int,
    steps: int,
    seed: int,
    batch_size: int,
) -> Iterator[Pictures]:
    """`images` pictures of each prompt by the plain ODE in `steps` steps, on the CPU.

    The noise of picture k of prompt p is a function of (seed, p, k): two policies are compared on
    the same noise, picture by picture.
    """
    for number, prompt in enumerate(prompts):
        latents = draw(
            policy,
            policy.encode([prompt.text]),
            seed=seed,
            group_id=number,
            images=images,
            steps=steps,
            batch_size=batch_size,
            solver="euler",
        )
        pixels = torch.cat([decoder.decode(part).cpu() for part in latents.split(batch_size)])
        yield Pictures(prompt, pixels, latents.cpu())
