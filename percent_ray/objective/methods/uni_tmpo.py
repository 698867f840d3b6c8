"""Uni-TMPO (arXiv 2609.34688), a rival: the group's distribution is matched to its rewards."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le

from percent_ray.objective.grpo import Weights
from percent_ray.objective.methods.base import Shaped, Signals, over_steps


@dataclass(frozen=True)
class UniTmpo:
    """Uni-TMPO's group distribution, without its tree (docs/rivals.md).

    q = softmax(beta r) is what the group is to be drawn like, p = softmax(s) how the policy draws
    it, s the sum of an image's log-probs. KL(q || p) has the gradient sum (p_i - q_i) grad s_i, so
    that A_i = K (q_i - p_i): of sum 0, no std divides, and `objective.advantage_clip` does not cut,
    since a cut of the best one alone would leave a sum below 0. Groups whose rewards are within
    `least_range` teach nothing. Open in the paper's account and chosen here: log-probs are means
    over the latent's elements, as everywhere here (sums would let the noise's norm decide p), and p
    is that of the policy that has drawn the group. The forward process has no log-probs: p = 1 / K;
    and it cuts at the clip, so that there a group with a larger |A| is made smaller as a whole.
    """

    name: Literal["uni_tmpo"] = "uni_tmpo"
    beta: Annotated[float, Ge(1e-6), Le(1e6)] = 15.0
    """Inverse temperature of the rewards; published 15, for rewards in 0 to 1."""
    least_range: Annotated[float, Ge(0), Le(1e6)] = 1e-3
    """Range of a group's rewards, largest less smallest, up to which it teaches nothing."""

    def __call__(self, s: Signals) -> Shaped:
        wanted = torch.softmax(self.beta * s.rewards.double(), dim=1)
        drawn = torch.softmax(s.log_prob.double().sum(-1), dim=1)
        count = s.rewards.shape[1]
        advantage = count * (wanted - drawn)
        reach = s.rewards.amax(1) - s.rewards.amin(1)
        advantage = torch.where((reach > self.least_range).unsqueeze(1), advantage, 0.0)
        if not s.log_prob.shape[-1]:
            # q = A / (2 clip) + 1/2 cuts there; a group is made smaller as a whole.
            most = advantage.abs().amax(1, keepdim=True).clamp_min(1e-300)
            advantage = advantage * (s.advantage_clip / most).clamp(max=1.0)
        # How many images of a group q is spread over.
        spread = (-(wanted * wanted.clamp_min(1e-300).log()).sum(1)).exp().mean().item()
        return Shaped(
            s.rewards,
            Weights(over_steps(s, advantage)),
            s.state,
            {"shaping/effective_images": spread},
        )
