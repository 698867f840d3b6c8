"""Integrate a velocity function: the ODE of evaluation and of the forward process, and the SDE path
that GRPO learns from."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow.schedule import check_sigmas
from percent_ray.flow.sde import Kind, transition

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(latents [B, ...], sigma f32[B]) -> [B, ...], with its condition and guidance inside."""


Solver = Literal["euler", "dpmpp_2m"]
"""Of the ODE. `dpmpp_2m`: DPM-Solver++ of second order, multistep (arXiv 2211.01095), which needs
fewer model calls for the same pictures."""


@dataclass(frozen=True, slots=True)
class Path:
    """The S SDE steps of one rollout. All but the log-probs is in the storage dtype."""

    means: Float[Tensor, "S B ..."]
    """mu_i of the drawing policy."""
    latents: Float[Tensor, "S+1 B ..."]
    """Row i and row i + 1 are the two ends of the i-th SDE step."""
    log_probs: Float32[Tensor, "S B"]
    """log pi_old(x_{i+1} | x_i), from the float32 mean and the stored latents."""
    std: Float32[Tensor, " S"]
    """Of the transitions that drew them."""
    entropy: Float32[Tensor, " S"]
    """Closed form of theirs, nats a dimension."""
    final: Float[Tensor, "B ..."]
    """Latents at sigma 0."""
    clean_latents: Float[Tensor, "N B ..."] | None
    """Clean predictions from x_{i+1}, for the N steps that were asked for."""
    clean_means: Float[Tensor, "N B ..."] | None
    """Clean predictions from mu_i."""


@torch.no_grad()
def ode(
    velocity: Velocity, noise: Float[Tensor, "B ..."], sigmas: Float[Tensor, " T_plus_1"]
) -> Float32[Tensor, "B ..."]:
    """Final latents of the plain Euler ODE (noise level 0), float32 throughout."""
    check_sigmas(sigmas)
    latents = noise.float()
    euler = partial(transition, sigma_second=sigmas[1], noise_level=0.0, kind="flow_sde")
    for sigma, sigma_next in pairwise(sigmas):
        v = velocity(latents, rows(sigma, latents))
        latents = euler(v, latents, sigma, sigma_next).mean
    return latents


@torch.no_grad()
def rollout(
    velocity: Velocity,
    noise0: Float[Tensor, "B ..."],
    sigmas: Float[Tensor, " T_plus_1"],
    *,
    steps: range,
    noise_level: float,
    kind: Kind,
    noise_at: Callable[[int], Tensor],
    storage_dtype: torch.dtype,
    clean_steps: Collection[int] = (),
) -> Path:
    """Sample from `noise0`, noisily at `steps`, else by the ODE (arXiv 2605.12112, eqs. 4-5).

    Latents pass through `storage_dtype` before their log-prob is taken and before the next step
    reads them, so that a replay from storage under the same weights has ratio exactly 1.
    `noise_at(i)` is the float32 noise [B, ...] of step i. `clean_steps` of `steps` get their clean
    predictions x - sigma v (docs/method.md, "Clean decoding"), at one more model call a step, but
    for the last, where the latents are clean already.
    """
    _check(sigmas, steps, noise_level, clean_steps)
    advance = partial(transition, sigma_second=sigmas[1], kind=kind)
    current = noise0.to(storage_dtype)
    latents, means, log_probs, spreads = (list[Tensor]() for _ in range(4))
    clean_latents, clean_means = list[Tensor](), list[Tensor]()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = velocity(current.float(), rows(sigma, current))
        if i - 1 in clean_steps:
            clean_latents.append(_clean(current, v, sigma))
        if i in steps:
            step = advance(v, current, sigma, sigma_next, noise_level=noise_level)
            if i == steps.start:
                latents.append(current)
            current = step.draw(noise_at(i).to(current.device)).to(storage_dtype)
            latents.append(current)
            means.append(step.mean.to(storage_dtype))
            log_probs.append(step.log_prob(current))
            spreads.append(torch.stack([step.std[0], step.entropy()[0]]))
        else:
            current = advance(v, current, sigma, sigma_next, noise_level=0.0).mean.to(storage_dtype)
        if i in clean_steps:
            clean_means.append(_denoise(velocity, means[-1], sigma_next))
    if len(sigmas) - 2 in clean_steps:
        clean_latents.append(current)
    std, entropy = torch.stack(spreads, dim=1)
    return Path(
        latents=torch.stack(latents),
        means=torch.stack(means),
        log_probs=torch.stack(log_probs),
        std=std,
        entropy=entropy,
        final=current,
        clean_latents=torch.stack(clean_latents) if clean_steps else None,
        clean_means=torch.stack(clean_means) if clean_steps else None,
    )


def join(paths: Sequence[Path]) -> Path:
    """The batches of one group as one path on the CPU."""

    def images(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(path, name).cpu() for path in paths], dim)

    clean = paths[0].clean_means is not None
    return Path(
        means=images("means", 1),
        latents=images("latents", 1),
        log_probs=images("log_probs", 1),
        std=paths[0].std.cpu(),
        entropy=paths[0].entropy.cpu(),
        final=images("final", 0),
        clean_latents=images("clean_latents", 1) if clean else None,
        clean_means=images("clean_means", 1) if clean else None,
    )


def _check(sigmas: Tensor, steps: range, noise_level: float, clean_steps: Collection[int]) -> None:
    check_sigmas(sigmas)
    num_steps = len(sigmas) - 1
    if not (steps.step == 1 and 0 <= steps.start < steps.stop <= num_steps):
        raise ValueError(f"SDE steps {steps} are not a non-empty window of {num_steps} steps")
    if noise_level <= 0:
        raise ValueError(
            f"noise_level {noise_level} leaves no noise at the SDE steps {steps}: "
            "set it above 0, or use ode()"
        )
    if not set(clean_steps) <= set(steps):
        raise ValueError(f"clean_steps {sorted(clean_steps)} are not a part of SDE steps {steps}")


def rows(sigma: Tensor, latents: Tensor) -> Float32[Tensor, " B"]:
    """One float32 sigma for each row, on the latents' device."""
    return sigma.to(latents.device, torch.float32).expand(len(latents))


def _clean(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean prediction x - sigma v, in the latents' dtype."""
    return (latents.float() - sigma.to(latents.device) * velocity.float()).to(latents.dtype)


def _denoise(velocity: Velocity, latents: Tensor, sigma: Tensor) -> Tensor:
    """The clean prediction from a mean; at sigma 0 that is the mean, without a model call."""
    if sigma == 0:
        return latents
    return _clean(latents, velocity(latents.float(), rows(sigma, latents)), sigma)
