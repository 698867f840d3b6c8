import pytest
import torch

from percent_ray.flow import sampler
from percent_ray.models.solver import solve


def gaussian(latents, sigma):
    """The exact velocity where the data is N(1, 0.5^2): a curved path with a known end."""
    s = sigma.reshape(-1, 1)
    variance = (0.5 * (1 - s)) ** 2 + s**2
    clean = 1 + 0.25 * (1 - s) / variance * (latents - (1 - s))
    noise = s / variance * (latents - (1 - s))
    return noise - clean


NOISE = torch.linspace(-2, 2, 7)[:, None]
END = 1 + 0.5 * NOISE


def error(solver, steps):
    u = torch.linspace(1, 0, steps + 1)
    sigmas = 3 * u / (1 + 2 * u)
    return (solve(gaussian, NOISE, sigmas, solver=solver) - END).abs().max().item()


def test_the_second_order_solver_beats_euler_and_converges_faster():
    assert error("dpmpp_2m", 20) < error("euler", 20) / 3
    doubled = {solver: error(solver, 20) / error(solver, 40) for solver in ("euler", "dpmpp_2m")}
    assert doubled["euler"] < 2
    assert doubled["dpmpp_2m"] > 3


def test_euler_is_the_samplers_own():
    sigmas = torch.linspace(1, 0, 6)
    found = solve(gaussian, NOISE, sigmas, solver="euler")
    assert torch.equal(found, sampler.ode(gaussian, NOISE, sigmas))


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_the_model_is_called_once_a_step_at_the_given_sigmas(solver):
    seen = []

    def velocity(latents, sigma):
        assert latents.dtype == sigma.dtype == torch.float32
        seen.append(sigma[0].item())
        return gaussian(latents, sigma)

    sigmas = torch.tensor([1.0, 0.8, 0.3, 0.0])
    found = solve(velocity, NOISE.half(), sigmas, solver=solver)
    assert seen == sigmas[:-1].tolist()
    assert found.dtype == torch.float32
