"""The clipped surrogate and its metrics. PAPER section 1, eqs. 1-3 and 6."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RatioMetrics:
    """Sums over transitions: `*_sum / count` is the mean of any number of micro-batches and ranks.

    0-d, detached, on the loss's device, so that collecting them waits for nothing. Reduce `count`
    and every `*_sum` by adding, `*_max` by the maximum.
    """

    count: Int64[Tensor, ""]
    """Transitions."""
    ratio_sum: Float64[Tensor, ""]
    ratio_deviation_max: Float64[Tensor, ""]
    """Largest |ratio - 1|."""
    clip_low_sum: Float64[Tensor, ""]
    """Transitions with A < 0 that the lower bound cuts off from the gradient."""
    clip_high_sum: Float64[Tensor, ""]
    """Transitions with A > 0 that the upper bound cuts off from the gradient."""
    approx_kl_sum: Float64[Tensor, ""]
    """(log pi - log pi_old)^2 / 2, Flow-GRPO's estimate of the KL to the old policy."""


def grpo_loss(
    log_prob: Float32[Tensor, "*n"],
    old_log_prob: Float32[Tensor, "*n"],
    advantage: Float32[Tensor, "*n"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float32[Tensor, "*n"], RatioMetrics]:
    """max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)) of each transition (PAPER eqs. 1, 6).

    rho = exp(log_prob - old_log_prob). The loss is not averaged: its sum over micro-batches and
    ranks, divided by the number of transitions, does not depend on how they were cut.
    """
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip ranges are {clip_low} and {clip_high}; set them to 0 or more")
    change = log_prob - old_log_prob
    ratio = change.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    return loss, _metrics(change.detach(), ratio.detach(), clipped.detach(), advantage)


def merge(first: RatioMetrics, second: RatioMetrics) -> RatioMetrics:
    """Metrics of two micro-batches together."""
    return RatioMetrics(
        count=first.count + second.count,
        ratio_sum=first.ratio_sum + second.ratio_sum,
        ratio_deviation_max=torch.maximum(first.ratio_deviation_max, second.ratio_deviation_max),
        clip_low_sum=first.clip_low_sum + second.clip_low_sum,
        clip_high_sum=first.clip_high_sum + second.clip_high_sum,
        approx_kl_sum=first.approx_kl_sum + second.approx_kl_sum,
    )


def _metrics(change: Tensor, ratio: Tensor, clipped: Tensor, advantage: Tensor) -> RatioMetrics:
    return RatioMetrics(
        count=torch.tensor(change.numel(), device=change.device),
        ratio_sum=ratio.double().sum(),
        ratio_deviation_max=(ratio.double() - 1).abs().amax(),
        clip_low_sum=((ratio < clipped) & (advantage < 0)).double().sum(),
        clip_high_sum=((ratio > clipped) & (advantage > 0)).double().sum(),
        approx_kl_sum=0.5 * change.double().square().sum(),
    )
