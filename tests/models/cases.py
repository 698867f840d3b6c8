"""Policies on the tiny pipeline, and inputs for them."""

import torch

from percent_ray.models import sd3
from tests.tiny import sd3_config

CPU = torch.device("cpu")
TEXTS = ["a red cat", "two dogs on a very long sofa"]


def policy(folder, *, seed=0, text=True, **changes):
    return sd3.load_policy(sd3_config(folder, **changes), seed=seed, device=CPU, text=text)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturb(parameters, seed=1):
    for number, parameter in enumerate(parameters.values()):
        parameter.data += 0.3 * noise(*parameter.shape, seed=seed + number)


def case(loaded, rows=2):
    latents = noise(rows, *loaded.latent_shape)
    return latents, torch.linspace(0.9, 0.3, rows), loaded.encode(TEXTS[:rows])
