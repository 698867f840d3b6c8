"""The loss of a transition: the clipped surrogate and whatever a method adds to it (docs/method.md,
"GRPO" and "Baselines")."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from percent_ray.flow.sde import Transition
from percent_ray.objective import guard
from percent_ray.objective.penalties import KLForm, gaussian_kl, reference_kl

LARGEST = 80.0
"""Log-ratios of clipped transitions are cut here: e^88.7 is all that float32 and bfloat16 hold."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a method makes of transitions, or of images in the forward process: their weights in
    `transition_loss` or `objective/forward.py`, all of one shape.

    A method decides once, on old-policy rollouts; None is 0 everywhere and costs nothing.
    """

    advantage: Float32[Tensor, "*n"]
    """A of the clipped surrogate; 0 leaves a transition out of it."""
    score: Float32[Tensor, "*n"] | None = None
    """w of - w rho: a reward beside the advantage, neither normalised nor clipped."""
    log_prob: Float32[Tensor, "*n"] | None = None
    """w of w log pi: above 0 it pushes the old samples' likelihood down."""
    kl_old: Float32[Tensor, "*n"] | None = None
    """w of w KL(policy || old policy)."""
    kl_reference: Float32[Tensor, "*n"] | None = None
    """w of w KL(policy || reference policy)."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Weights":
        """`function` of every weight that there is."""
        return _weights({name: function(value) for name, value in self.present().items()})

    def present(self) -> dict[str, Tensor]:
        """The weights that there are, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if value is not None}

    def teaches(self, dims: int) -> Tensor:
        """Where anything but a KL pulls, over the last `dims` dimensions: bool [*]. A KL alone only
        holds the policy where it is."""
        pulls = self.advantage != 0
        for weight in (self.score, self.log_prob):
            if weight is not None:
                pulls = pulls | (weight != 0)
        return pulls.flatten(-dims).any(dim=-1)


@dataclass(frozen=True, slots=True)
class RatioMetrics:
    """Sums over transitions, of which the learner knows the number.

    0-d, detached, on the loss's device, so that collecting them waits for nothing. Reduce every
    `*_sum` by adding, `*_max` by the maximum.
    """

    ratio_sum: Float64[Tensor, ""]
    ratio_deviation_max: Float64[Tensor, ""]
    """Largest |ratio - 1|."""
    clip_low_sum: Float64[Tensor, ""]
    """Transitions with A < 0 that the lower bound cuts off from the gradient."""
    clip_high_sum: Float64[Tensor, ""]
    """Transitions with A > 0 that the upper bound cuts off from the gradient."""
    outside_sum: Float64[Tensor, ""]
    """Transitions with a ratio outside the clip range, whatever their A."""
    approx_kl_sum: Float64[Tensor, ""]
    """(log pi - log pi_old)^2 / 2, Flow-GRPO's estimate of the KL to the old policy."""


def stack(weights: Sequence[Weights]) -> Weights:
    """Weights of the same method, one above the other."""
    names = weights[0].present()
    return _weights({name: torch.stack([w.present()[name] for w in weights]) for name in names})


def _weights(present: dict[str, Tensor]) -> Weights:
    return Weights(present.pop("advantage"), **present)


def grpo_loss(
    log_prob: Float32[Tensor, "*n"],
    old_log_prob: Float32[Tensor, "*n"],
    advantage: Float32[Tensor, "*n"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Float32[Tensor, "*n"], RatioMetrics]:
    """max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)) of each transition (arXiv
    2605.12112, eqs. 1 and 6).

    rho = exp(log_prob - old_log_prob). The loss is not averaged: its sum over micro-batches and
    ranks, divided by the number of transitions, does not depend on how they were cut.

    What has no gradient in it has none at any log-ratio, also where exp overflows and 0 inf would
    be NaN. Where A < 0 an infinite rho stays infinite, and so does the gradient: that policy has
    left its data behind, and the learner says so.
    """
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip ranges are {clip_low} and {clip_high}; set them to 0 or more")
    change = log_prob - old_log_prob
    ratio = _exp(change, bounded=advantage >= 0)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    return loss, _metrics(change.detach(), ratio.detach(), clipped.detach(), advantage)


def transition_loss(
    policy: Transition,
    next_latents: Float32[Tensor, "B ..."],
    old_log_prob: Float32[Tensor, " B"] | None,
    weights: Weights,
    *,
    clip_low: float,
    clip_high: float,
    old_mean: Float32[Tensor, "B ..."] | None = None,
    reference: Transition | None = None,
    kl_form: KLForm = "gaussian",
    ratio: guard.Ratio = "plain",
    scale: Float32[Tensor, " B"] | None = None,
) -> tuple[Float32[Tensor, " B"], RatioMetrics, Float32[Tensor, " B"] | None]:
    """The loss of one step of B images, with the ratio's metrics and the KL to the reference.

        scale (max(-A rho, -A clip(rho)) - score rho) + log_prob log pi
            + kl_old |mu - mu_old|^2 / (2 s^2) + kl_reference KL(pi || pi_ref)

    Without `old_log_prob` the old policy is this one: rho is 1, with its gradient. `old_mean` is
    needed where `weights.kl_old` is given or the `ratio` is guard's, `reference` where
    `kl_reference` is; `scale` is `step_weights.step_weight`.
    """
    log_prob = policy.log_prob(next_latents)
    if old_log_prob is None:
        old_log_prob = log_prob.detach()
    change = log_prob - old_log_prob
    if ratio == "guard":
        assert old_mean is not None
        change = guard.log_ratio(policy, log_prob, old_log_prob, old_mean)
    loss, metrics = grpo_loss(
        change,
        torch.zeros_like(change),
        weights.advantage,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    plain = (log_prob - old_log_prob).detach().double()  # whatever the ratio is
    metrics = replace(metrics, approx_kl_sum=0.5 * plain.square().sum())
    kl = None
    if weights.score is not None:
        loss = loss - weights.score * _exp(change, bounded=weights.score == 0)
    if scale is not None:
        loss = loss * scale
    if weights.log_prob is not None:
        loss = loss + weights.log_prob * log_prob
    if weights.kl_old is not None:
        assert old_mean is not None
        loss = loss + weights.kl_old * gaussian_kl(policy.mean, old_mean, policy.std)
    if weights.kl_reference is not None:
        assert reference is not None
        kl = reference_kl(policy, reference, form=kl_form)
        loss = loss + weights.kl_reference * kl
    return loss, metrics, kl


def _exp(change: Tensor, *, bounded: Tensor) -> Tensor:
    """exp, of at most `LARGEST` where `bounded`."""
    return torch.where(bounded, change.clamp(max=LARGEST), change).exp()


def _metrics(change: Tensor, ratio: Tensor, clipped: Tensor, advantage: Tensor) -> RatioMetrics:
    return RatioMetrics(
        ratio_sum=ratio.double().sum(),
        ratio_deviation_max=(ratio.double() - 1).abs().amax(),
        clip_low_sum=((ratio < clipped) & (advantage < 0)).double().sum(),
        clip_high_sum=((ratio > clipped) & (advantage > 0)).double().sum(),
        outside_sum=(ratio != clipped).double().sum(),
        approx_kl_sum=0.5 * change.double().square().sum(),
    )
