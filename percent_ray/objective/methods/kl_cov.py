"""KL-Cov, a baseline: the transitions that drive the entropy down are held."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from percent_ray.objective.methods.base import Shaped, Signals, normalized
from percent_ray.objective.methods.clip_cov import covarying


@dataclass(frozen=True)
class KlCov:
    """KL-Cov: the transitions of the largest covariance are held where the old policy had them, by
    a KL of weight `strength` (docs/method.md, "Baselines")."""

    name: Literal["kl_cov"] = "kl_cov"
    spaces: tuple[str, ...] = ()
    """Scorers whose perceptual log-prob is used; none is the policy's own."""
    fraction: Annotated[float, Gt(0), Lt(1)] = 0.25
    """Share of the transitions that is acted on."""
    strength: Annotated[float, Ge(1e-9), Le(1e6)] = 1.0
    """Weight beta of the KL to the old policy."""

    def __call__(self, s: Signals) -> Shaped:
        plain = normalized(s, s.rewards)
        holding = covarying(s, self.spaces, self.fraction) * self.strength
        return replace(plain, weights=replace(plain.weights, kl_old=holding))
