"""One denoising step as a Gaussian policy. The same function draws it and replays it.

Time runs from sigma = 1 (noise) to sigma = 0 (image). A step goes from `sigma` to `sigma_next`,
dt = sigma_next - sigma < 0. docs/method.md, "The SDE step".
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

Kind = Literal["flow_sde", "cps", "dance"]
"""`flow_sde`: Flow-GRPO's SDE (arXiv 2605.12112, eqs. 4-5). `cps`: coefficients-preserving
sampling. `dance`: DanceGRPO's SDE (arXiv 2505.07818)."""

Sigma = float | Float[Tensor, ""] | Float[Tensor, " B"]
"""One noise level for the whole batch, or one for each of its rows."""

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What a step does to latents and velocity. Each is float32, shaped like the sigmas."""

    latents: Float32[Tensor, "*steps"]
    """Factor of the latents in the mean."""
    velocity: Float32[Tensor, "*steps"]
    """Factor of the velocity in the mean."""
    std: Float32[Tensor, "*steps"]
    """s, the standard deviation of the step."""
    diffusion: Float32[Tensor, "*steps"]
    """g = s / sqrt(-dt), the noise per square root of time; s itself for `cps`."""


@dataclass(frozen=True, slots=True)
class Transition:
    """N(mean, std^2 I) over the next latents, one row for each latent of the batch.

    Log-probs, entropies and divergences are means over the latent's elements, in nats a dimension:
    that convention sets the scale of the ratio and of the clip range.
    """

    mean: Float32[Tensor, "B ..."]
    std: Float32[Tensor, " B"]
    diffusion: Float32[Tensor, " B"]
    """g, see `Coefficients`."""
    kind: Kind

    def draw(self, noise: Float[Tensor, "B ..."]) -> Float32[Tensor, "B ..."]:
        """x_{i+1} = mu + s eps (arXiv 2605.12112, eq. 5)."""
        return self.mean + over(self.std, self.mean) * noise

    def log_prob(self, next_latents: Float[Tensor, "B ..."]) -> Float32[Tensor, " B"]:
        """log pi(x_{i+1} | x_i), mean over the latent's elements; gradients reach the mean only.

        `cps` drops the constants and the variance, as its authors do. Not finite where std is 0
        (noise_level 0), except for `cps`. Summed in float64, so that a row's value does not depend
        on the batch that it is replayed in.
        """
        residual = mean_square(next_latents.detach().float() - self.mean)
        if self.kind == "cps":
            return (-residual).float()
        std = self.std.double()
        return (-residual / (2 * std.square()) - std.log() - HALF_LOG_2PI).float()

    def entropy(self) -> Float32[Tensor, " B"]:
        """Closed form 1/2 + 1/2 log 2 pi + log s, whatever the policy is (arXiv 2605.12112,
        eqs. 8-10)."""
        return (0.5 + HALF_LOG_2PI + self.std.double().log()).float()


def coefficients(
    sigma: Sigma, sigma_next: Sigma, *, sigma_second: float | Tensor, noise_level: float, kind: Kind
) -> Coefficients:
    """Coefficients of the steps sigma -> sigma_next, computed in float64 from float32 sigmas.

    `flow_sde` (arXiv 2605.12112, eqs. 4-5): g = eta sqrt(sigma / (1 - sigma~)), sigma~ =
    sigma_second where sigma is exactly 1, else sigma. `dance`: the same with g = eta at every step.
    `cps`: s = sigma_next sin(eta pi / 2).
    Raises ValueError for a negative noise level and for an unknown kind.
    """
    if noise_level < 0:
        raise ValueError(f"noise_level is {noise_level}; set it to 0 (no noise) or more")
    now, then, second = _double(sigma), _double(sigma_next), _double(sigma_second)
    if kind in ("flow_sde", "dance"):
        dt = then - now
        flat = kind == "dance"
        growth = now / (1 - torch.where(now == 1, second, now))
        diffusion = noise_level * (torch.ones_like(now) if flat else growth.sqrt())
        drift = diffusion.square() / (2 * now)
        std = diffusion * (-dt).sqrt()
        latents, velocity = 1 + drift * dt, (1 + drift * (1 - now)) * dt
    elif kind == "cps":
        std = diffusion = then * math.sin(0.5 * math.pi * noise_level)
        signal, spread = 1 - then, (then.square() - std.square()).sqrt()
        latents, velocity = signal + spread, (1 - now) * spread - now * signal
    else:
        raise ValueError(f"unknown SDE kind {kind!r}; set it to 'flow_sde', 'cps' or 'dance'")
    return Coefficients(latents.float(), velocity.float(), std.float(), diffusion.float())


def transition(
    velocity: Float[Tensor, "B ..."],
    latents: Float[Tensor, "B ..."],
    sigma: Sigma,
    sigma_next: Sigma,
    *,
    sigma_second: float | Tensor,
    noise_level: float,
    kind: Kind,
) -> Transition:
    """The policy's step from `latents` at `sigma` under the model's `velocity` (arXiv 2605.12112,
    eqs. 4-5).

    `sigma` and `sigma_next` may differ from row to row; `sigma_second` is the schedule's second
    sigma. At noise_level 0 the mean is the Euler step of the ODE and the std is 0.
    """
    device = latents.device
    step = coefficients(
        torch.as_tensor(sigma, device=device),
        torch.as_tensor(sigma_next, device=device),
        sigma_second=torch.as_tensor(sigma_second, device=device),
        noise_level=noise_level,
        kind=kind,
    )
    mean = over(step.latents, latents) * latents.float()
    mean = mean + over(step.velocity, latents) * velocity.float()
    rows = latents.shape[:1]
    return Transition(mean, step.std.expand(rows), step.diffusion.expand(rows), kind)


def _double(sigma: float | Tensor) -> Tensor:
    """Rounded to float32 first: a Python float and the tensor it came from act the same."""
    return torch.as_tensor(sigma, dtype=torch.float32).double()


def over(factor: Tensor, latents: Tensor) -> Tensor:
    """A scalar or [B] factor, shaped to multiply [B, ...]."""
    return factor.reshape(factor.shape + (1,) * (latents.ndim - 1)) if factor.ndim else factor


def mean_square(difference: Tensor) -> Tensor:
    """[B, ...] to float64 [B]."""
    return difference.square().flatten(1).mean(1, dtype=torch.float64)
