"""What a method is. One method is one module in this folder.

A method's module has one frozen dataclass whose `name` is the module's. Its fields are the recipe's
keys beside `method.name`, with their types, bounds, defaults and docstrings; called with a step's
`Signals` it returns what it makes of them. What has to be measured for it is told by the names of
its fields: `spaces` (log-probs of transitions, perceptual ones where it names any; such a method is
of the reverse process only), `image_spaces` (features of finished images) and `judges` (scores that
are not part of the reward). KL to the reference and clip ranges are those of the recipe's
`objective`, whatever the method: Flow-GRPO with `objective.kl` is table 1's "w/ KL", with
`objective.clip_high` above `clip_low` it is "Clip-Higher".

Everything is decided here, on old-policy rollouts; the learner applies the weights and no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from percent_ray.flow.noise import generator
from percent_ray.objective import advantage, shaping
from percent_ray.objective.advantage import StdScope
from percent_ray.objective.grpo import Weights
from percent_ray.objective.strength import State


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of the G groups of one step. All on the CPU."""

    group_ids: Int64[Tensor, " G"]
    rewards: Float32[Tensor, "G K"]
    """The weighted sum of the scores."""
    scores: Mapping[str, Float32[Tensor, "G K"]]
    """Every score by scorer."""
    log_prob: Float32[Tensor, "G K S"]
    """log pi_old of the trained steps. The forward process has none: S and N are 0 there."""
    log_p_perc: Mapping[str, Float32[Tensor, "G K N"]]
    """Perceptual log-prob (arXiv 2605.12112, eq. 12) of the scored steps, by space."""
    scored: Int64[Tensor, "G N"]
    """Which of the S trained steps they are; all images of a group have the same."""
    std: Float32[Tensor, " S"]
    features: Mapping[str, Float32[Tensor, "G K D"]]
    """Unit-norm features of the finished images, by space."""
    probe: Mapping[str, Float32[Tensor, "P K D"]] | None
    """The same of the fixed prompts with fixed noise, at steps that have measured them."""
    state: State
    advantage_std: StdScope
    advantage_clip: float
    seed: int

    @property
    def steps(self) -> int:
        """How many weights an image has: one for each trained step, or one in all."""
        return max(1, self.log_prob.shape[-1])


@dataclass(frozen=True, slots=True)
class Shaped:
    """What a method makes of a step."""

    rewards: Float32[Tensor, "G K"]
    """With what the method adds to them."""
    weights: Weights
    """Every weight [G, K, `Signals.steps`]."""
    state: State
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


class Method(Protocol):
    """A method with its parameters."""

    @property
    def name(self) -> str:
        """Of its module, which is the recipe's `method.name`."""
        ...

    def __call__(self, s: Signals) -> Shaped:
        """What the method makes of a step."""
        ...


def normalized(s: Signals, rewards: Float32[Tensor, "G K"]) -> Shaped:
    """GRPO's advantages of shaped rewards, the same for every step of an image."""
    values = advantage.advantages(rewards, std=s.advantage_std, clip=s.advantage_clip)
    return Shaped(rewards, Weights(over_steps(s, values)), s.state)


def over_steps(s: Signals, values: Float32[Tensor, "G K"]) -> Float32[Tensor, "G K S"]:
    """Each image's value at every of its `s.steps` steps."""
    return values.unsqueeze(-1).expand(-1, -1, s.steps).float()


def columns(s: Signals) -> Int64[Tensor, "G K N"]:
    """The scored steps as an index into [G, K, S]."""
    return s.scored.unsqueeze(1).expand(-1, s.rewards.shape[1], -1)


def step_weights(s: Signals, omega: shaping.Omega) -> Float32[Tensor, "G 1 N"]:
    """omega of each group's scored steps, of mean 1 over all S."""
    return shaping.step_weights(s.std, omega)[s.scored].unsqueeze(1)


def shuffle(s: Signals, values: Float32[Tensor, "G K *n"]) -> Float32[Tensor, "G K *n"]:
    """Every image has the value of another one of its group: of the next in a random ring, a
    function of (seed, group id)."""
    rows: list[Tensor] = []
    for group_id, row in zip(s.group_ids, values, strict=True):
        source = generator("shuffled", s.seed, int(group_id.item()))
        ring = torch.randperm(len(row), generator=source)
        rows.append(torch.empty_like(row).index_copy(0, ring, row[ring.roll(1)]))
    return torch.stack(rows)


def term_metrics(
    term: Float32[Tensor, "G K"], strength: float, suffix: str = ""
) -> dict[str, float]:
    """What a term weighs, and how much it varies among the images of a group."""
    return {
        f"shaping/strength{suffix}": strength,
        f"shaping/term_std_in_group{suffix}": term.std(1, correction=0).mean().item(),
    }
