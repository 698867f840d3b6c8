"""Solvers of the sampling ODE: what groups of the forward process are drawn by."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from percent_ray.flow import sampler
from percent_ray.flow.schedule import check_sigmas


@torch.no_grad()
def solve(
    velocity: sampler.Velocity,
    noise: Float[Tensor, "B ..."],
    sigmas: Float[Tensor, " T_plus_1"],
    *,
    solver: sampler.Solver,
) -> Float32[Tensor, "B ..."]:
    """Final latents of the ODE from `noise`, on the given sigmas, one model call each."""
    if solver == "euler":
        return sampler.ode(velocity, noise, sigmas)
    return _multistep(velocity, noise, sigmas)


def _multistep(
    velocity: sampler.Velocity, noise: Float[Tensor, "B ..."], sigmas: Float[Tensor, " T_plus_1"]
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
    latents = noise.float()
    for step, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        predicted = velocity(latents, sampler.rows(sigma, latents)).float()
        latents = scheduler.step(predicted, step, latents, return_dict=False)[0]
    return latents
