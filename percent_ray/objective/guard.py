"""GRPO-Guard's ratio (arXiv 2510.22319): of one spread at every step, and centred at 1
(docs/rivals.md)."""

from typing import Literal

from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow.sde import Transition, mean_square

Ratio = Literal["plain", "guard"]
"""`plain`: pi / pi_old. `guard`: GRPO-Guard's."""


def log_ratio(
    policy: Transition,
    log_prob: Float32[Tensor, " B"],
    old_log_prob: Float32[Tensor, " B"],
    old_mean: Float[Tensor, "B ..."],
) -> Float32[Tensor, " B"]:
    """s (log pi - log pi_old + |mu - mu_old|^2 / (2 s^2)), with the mean over the elements.

    With x = mu_old + s eps that is (mu - mu_old) . eps / d: the plain log-ratio has a negative mean
    and a spread that grows as 1 / s, so that a clip range of one size lets steps of little noise
    pass and not the others. The mean's square carries a gradient, as the log-prob does.
    """
    moved = mean_square(policy.mean - old_mean.detach().float())
    gap = (moved / (2 * policy.std.double().square())).float()
    return policy.std * (log_prob - old_log_prob + gap)
