"""The KL to a reference policy (docs/method.md, "GRPO")."""

from typing import Literal

from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow.sde import Transition, mean_square

KLForm = Literal["gaussian", "flow_grpo", "mean"]
"""`gaussian`: the true KL, with dt. `flow_grpo`: Flow-GRPO's code, which divides by 2 g^2 instead
of 2 s^2, so that it is the true KL times -dt and its beta is on another scale. `mean`: the means'
squared distance, as DiverseGRPO has it (arXiv 2512.21514), since 1 / (2 s^2) is smallest at the
early steps, which decide most of the diversity."""


def gaussian_kl(
    mean: Float[Tensor, "B ..."],
    mean_reference: Float[Tensor, "B ..."],
    scale: Float[Tensor, " B"],
) -> Float32[Tensor, " B"]:
    """||mu - mu_ref||^2 / (2 scale^2), mean over the latent's elements.

    With scale = s the KL of two policies at one step, in nats a dimension; KL-Cov has it too, with
    the old policy's mean for reference.
    """
    gap = mean_square(mean.float() - mean_reference.float())
    return (gap / (2 * scale.double().square())).float()


def reference_kl(
    policy: Transition, reference: Transition, *, form: KLForm
) -> Float32[Tensor, " B"]:
    """KL(policy || reference) of each row, for one step of both, or |mu - mu_ref|^2; the reference
    gets no gradient."""
    if form == "mean":
        return mean_square(policy.mean - reference.mean.detach()).float()
    if form == "gaussian":
        scale = policy.std
    elif form == "flow_grpo":
        scale = policy.diffusion
    else:
        raise ValueError(f"unknown KL form {form!r}; set it to 'gaussian', 'flow_grpo' or 'mean'")
    return gaussian_kl(policy.mean, reference.mean.detach(), scale)
