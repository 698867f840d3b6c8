"""Flow-GRPO: the reward alone."""

from dataclasses import dataclass
from typing import Literal

from percent_ray.objective.methods.base import Shaped, Signals, normalized


@dataclass(frozen=True)
class FlowGrpo:
    """Flow-GRPO: the reward alone (arXiv 2605.12112, eqs. 1-6)."""

    name: Literal["flow_grpo"] = "flow_grpo"

    def __call__(self, s: Signals) -> Shaped:
        return normalized(s, s.rewards)
