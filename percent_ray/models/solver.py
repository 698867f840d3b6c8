"""Pictures by the sampling ODE: groups of the forward process, and what a policy is judged by."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow import noise, sampler
from percent_ray.flow.schedule import check_sigmas
from percent_ray.models.base import Condition, Policy


def draw(
    policy: Policy,
    condition: Condition,
    *,
    seed: int,
    group_id: int,
    images: int,
    steps: int,
    batch_size: int,
    solver: sampler.Solver,
) -> Float32[Tensor, "K C H W"]:
    """Final latents of the group's `images` pictures, on the policy's device, `batch_size` at a
    time; the noise of each is a function of (seed, group id, image)."""
    device = next(policy.module.parameters()).device
    sigmas = policy.sigmas(steps).to(device)
    parts: list[Tensor] = []
    for first in range(0, images, batch_size):
        chosen = range(first, min(first + batch_size, images))
        start = noise.group_noise(seed, group_id, chosen, noise.INITIAL, policy.latent_shape)
        parts.append(
            solve(
                lambda latents, sigma: policy.velocity(latents, sigma, condition),
                start.to(device),
                sigmas,
                solver=solver,
            )
        )
    return torch.cat(parts)


@torch.no_grad()
def solve(
    velocity: sampler.Velocity,
    start: Float[Tensor, "B ..."],
    sigmas: Float[Tensor, " T_plus_1"],
    *,
    solver: sampler.Solver,
) -> Float32[Tensor, "B ..."]:
    """Final latents of the ODE from the noise `start`, on the given sigmas, one model call each."""
    if solver == "euler":
        return sampler.ode(velocity, start, sigmas)
    return _multistep(velocity, start, sigmas)


def _multistep(
    velocity: sampler.Velocity, start: Float[Tensor, "B ..."], sigmas: Float[Tensor, " T_plus_1"]
) -> Float32[Tensor, "B ..."]:
    """diffusers' scheduler, on our sigmas in place of its own."""
    check_sigmas(sigmas)
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.to("cpu", torch.float32)
    scheduler.set_begin_index(0)
    latents = start.float()
    for step, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        predicted = velocity(latents, sampler.rows(sigma, latents)).float()
        latents = scheduler.step(predicted, step, latents, return_dict=False)[0]
    return latents
