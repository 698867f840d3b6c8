"""PCVAE: the gap between perceptual and VAE space is part of the reward."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.objective import shaping
from percent_ray.objective.methods.base import Shaped, Signals, columns, step_weights
from percent_ray.objective.methods.pec import Pec


@dataclass(frozen=True)
class Pcvae(Pec):
    """PCVAE: the KL of perceptual and VAE space, which is to stay low, is part of the reward (arXiv
    2605.12112, eqs. 16-21). Its parameters are PEC's."""

    name: Literal["pcvae"] = "pcvae"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __call__(self, s: Signals) -> Shaped:
        omega, old = step_weights(s, self.omega), s.log_prob.gather(2, columns(s))
        values = [shaping.pcvae_values(s.log_p_perc[k], old, omega) for k in self.spaces]
        shaped = self.shaped(s, values)
        pec = [shaping.pec_values(s.log_p_perc[k], omega) for k in self.spaces]
        term, pec_term = (torch.stack(each).sum(0).mean(-1) for each in (values, pec))
        metrics = {
            "shaping/correlation_with_pec": _correlation(term, pec_term),
            "shaping/pec_std_in_group": pec_term.std(1, correction=0).mean().item(),
            "shaping/log_prob_std_in_group": old.mean(-1).std(1, correction=0).mean().item(),
        }
        return replace(shaped, metrics={**shaped.metrics, **metrics})


def _correlation(x: Float32[Tensor, "G K"], y: Float32[Tensor, "G K"]) -> float:
    """Within groups, pooled; 0 where one of the two does not vary."""
    a, b = (v.double() - v.double().mean(dim=1, keepdim=True) for v in (x, y))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / scale).item() if scale > 0 else 0.0
