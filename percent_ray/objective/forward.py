"""Learning on the forward process: flow matching on finished images, weighted by their advantages
(docs/method.md, "The forward process").

A finished image's latents x_0 are noised afresh, x_t = (1 - t) x_0 + t eps, and the velocity there
is pulled towards eps - x_0 or pushed away from it. No trajectory, no log-prob, no ratio of
densities. Squares are means over the latent's elements, summed in float64, as everywhere here.
"""

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow import sde
from percent_ray.objective.grpo import RatioMetrics, grpo_loss

Loss = Literal["nft", "awm"]
"""`nft`: DiffusionNFT (arXiv 2509.16117). `awm`: advantage-weighted matching (arXiv 2509.25050)."""
Times = Literal["schedule", "shifted"]
"""`schedule`: the sigmas that the sampler calls the model at. `shifted`: s u / (1 + (s - 1) u)."""

LEAST = 1e-5
"""Of an adaptive weight."""


def draw_times(
    schedule: Float32[Tensor, " T"] | None, *, count: int, shift: float, source: torch.Generator
) -> Float32[Tensor, " n"]:
    """The times of one image's `count` fresh noises, in random order, in (0, 1].

    Of a `schedule`: `count` of its T times without repetition. Without one: t = s u / (1 + (s - 1)
    u) with `shift` s, and u uniform, one in each of `count` equal parts of (0, 1), which has the
    same distribution and less noise than independent draws.
    """
    if schedule is not None:
        order = torch.randperm(len(schedule), generator=source)
        return schedule[order[:count]]
    order = torch.randperm(count, generator=source)
    u = (order + torch.rand(count, generator=source)).clamp_min(LEAST) / count
    return shift * u / (1 + (shift - 1) * u)


def noised(
    clean: Float[Tensor, "B ..."], noise: Float32[Tensor, "B ..."], time: Float32[Tensor, " B"]
) -> Float32[Tensor, "B ..."]:
    """x_t = (1 - t) x_0 + t eps."""
    t = sde.over(time, clean)
    return (1 - t) * clean.float() + t * noise


def optimality(advantage: Float32[Tensor, " B"], *, clip: float) -> Float32[Tensor, " B"]:
    """q = clamp(A / clip, -1, 1) / 2 + 1/2, from 0 (the worst) to 1 (the best)."""
    return (advantage / clip).clamp(-1, 1) / 2 + 0.5


def nft_loss(
    velocity: Float32[Tensor, "B ..."],
    velocity_old: Float32[Tensor, "B ..."],
    target: Float32[Tensor, "B ..."],
    time: Float32[Tensor, " B"],
    advantage: Float32[Tensor, " B"],
    *,
    beta: float,
    clip: float,
) -> Float32[Tensor, " B"]:
    """DiffusionNFT's loss of each row (arXiv 2509.16117), with its adaptive weights.

        v+ = b v_theta + (1 - b) v_old        v- = (1 + b) v_old - b v_theta
        L = clip [ q |x^+ - x_0|^2 / w+ + (1 - q) |x^- - x_0|^2 / w- ] / b

    with the clean predictions x^ = x_t - t v, so that x^ - x_0 = t (eps - x_0 - v); w = mean
    |x^ - x_0| of the row, at least `LEAST`, without gradient. `target` is eps - x_0. Where
    v_theta = v_old the gradient is that of A t^2 |v_theta - target|^2 / w, for |A| <= `clip`.
    """
    old, t = velocity_old.detach(), sde.over(time, target)
    q = optimality(advantage, clip=clip)
    error_plus = t * (target - (beta * velocity + (1 - beta) * old))
    error_minus = t * (target - ((1 + beta) * old - beta * velocity))
    loss = q * _adaptive(error_plus) + (1 - q) * _adaptive(error_minus)
    return clip * loss / beta


def awm_loss(
    velocity: Float32[Tensor, "B ..."],
    velocity_old: Float32[Tensor, "B ..."],
    target: Float32[Tensor, "B ..."],
    advantage: Float32[Tensor, " B"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float32[Tensor, " B"], RatioMetrics]:
    """Advantage-weighted matching (arXiv 2509.25050): the clipped surrogate, with minus the
    flow-matching loss in the place of the log-prob.

        rho = exp(|v_old - target|^2 - |v_theta - target|^2)
        L = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))

    Where v_theta = v_old the gradient is that of A |v_theta - target|^2.
    """
    now, old = velocity - target, velocity_old.detach() - target
    return grpo_loss(
        -mean_square(now), -mean_square(old), advantage, clip_low=clip_low, clip_high=clip_high
    )


def mean_square(difference: Float32[Tensor, "B ..."]) -> Float32[Tensor, " B"]:
    """Mean over the elements of each row."""
    return sde.mean_square(difference).float()


def old_decay(step: int, *, first: float, rise: float, after: int, most: float) -> float:
    """d of old <- d old + (1 - d) theta after `step` learner steps: min(most, first + rise
    max(0, step - after)). Published for PickScore and GenEval: rise 0.001 up to 0.5."""
    return min(most, first + rise * max(0, step - after))


def _adaptive(error: Float32[Tensor, "B ..."]) -> Float32[Tensor, " B"]:
    """|error|^2 / mean |error|, the divisor without gradient."""
    weight = error.detach().abs().flatten(1).mean(1, dtype=torch.float64).clamp_min(LEAST)
    return mean_square(error) / weight.float()
