"""The third verb: a step's perceptions in, a batch with advantages out. Pure; runs on the driver.

An image's reward is the weighted sum of its scores plus strength x its perceptual term (PAPER eqs.
16-20), then come GRPO's advantages (eq. 3).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.config import Recipe
from percent_ray.evaluation.diversity import variance_per_dimension, vendi
from percent_ray.objective import advantage, entropy, shaping
from percent_ray.types import Perception, ShapedBatch, ShapedRow, Trajectory


@dataclass(frozen=True, slots=True)
class ShapeState:
    """What is measured at the first step and kept for the run; part of the checkpoint."""

    strength: float | None = None
    """Lambda in use."""
    bandwidth: Mapping[str, float] = field(default_factory=dict)
    """Squared bandwidth h^2 of the marginal entropy, by space."""


Group = tuple[Trajectory, Perception]


def shape(
    recipe: Recipe, step: int, version: int, groups: Sequence[Group], state: ShapeState
) -> tuple[ShapedBatch, ShapeState, dict[str, float]]:
    """The learner's batch of `step`, the state for the next step, and the step's metrics.

    Dropped groups and groups whose shaped rewards are all equal are left out here, for all ranks
    alike. Raises ValueError where every group was dropped.
    """
    kept = [(trajectory, seen) for trajectory, seen in groups if not seen.dropped]
    if not kept:
        failures = sorted({line for _, seen in groups for line in seen.failures})
        raise ValueError(f"step {step}: every group was dropped; {'; '.join(failures)}")
    perceptions = [seen for _, seen in kept]
    rewards = torch.stack([_reward(recipe, seen) for seen in perceptions])
    shaped, terms = rewards, None
    if recipe.perceptual.method != "none":
        state = _bandwidths(recipe, perceptions, state)
        terms = torch.stack([_term(recipe, group, state) for group in kept])
        state = _strength(recipe, rewards, terms, state)
        assert state.strength is not None
        shaped = shaping.shape(rewards, terms, state.strength)
    advantages = advantage.advantages(
        shaped, std=recipe.objective.advantage_std, clip=recipe.objective.advantage_clip
    )
    flat = advantage.zero_std_groups(shaped)
    rows = tuple(
        ShapedRow(
            trajectory.group_id,
            trajectory.version,
            trajectory.payload,
            trajectory.condition,
            advantages[i].numpy(),
        )
        for i, (trajectory, _) in enumerate(kept)
        if not flat[i]
    )
    metrics = {
        **describe(recipe, kept),
        **_shaping_metrics(rewards, shaped, terms, advantages, state),
        "groups/dropped": float(len(groups) - len(kept)),
        "groups/zero_std": float(flat.sum()),
        "staleness/max": float(max(version - trajectory.version for trajectory, _ in kept)),
    }
    return ShapedBatch(step, version, rows), state, metrics


def describe(recipe: Recipe, groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, entropies and diversity of groups, each averaged over the groups that have it.

    `entropy/policy` is the schedule's closed form, `entropy/policy_sampled` its Monte Carlo
    estimate from the drawn latents.
    """
    perceptions = [seen for _, seen in groups]
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for trajectory, seen in groups:
        for name, values in seen.rewards.items():
            note(f"reward/{name}_mean", float(values.mean()))
            note(f"reward/{name}_std_in_group", float(values.std()))
        note("reward/mean", float(_reward(recipe, seen).mean()))
        note("reward/std_in_group", float(_reward(recipe, seen).std(correction=0)))
        closed = 0.5 + 0.5 * math.log(2 * math.pi) + np.log(trajectory.std.astype(np.float64))
        note("entropy/policy", float(closed.mean()))
        note("entropy/policy_sampled", float(-seen.log_p_policy.mean()))
        for space, log_p in seen.log_p_perc.items():
            note(f"entropy/perceptual_{space}", float(-log_p.mean()))
        for space, features in seen.features.items():
            values = torch.tensor(features)
            note(f"diversity/vendi_{space}", vendi(values))
            note(f"diversity/variance_{space}", variance_per_dimension(values))
        for space, variance in seen.variance.items():
            note(f"diversity/variance_{space}", variance)
    failures = sum(len(seen.failures) for seen in perceptions)
    return {name: float(np.mean(v)) for name, v in found.items()} | {
        "groups/failed_rewards": float(failures)
    }


def _reward(recipe: Recipe, seen: Perception) -> Float32[Tensor, " K"]:
    """Weighted sum of the scores. An optional scorer that failed for the group adds nothing to any
    of its images, which leaves the differences in the group to the others."""
    parts = [recipe.scorers[n].weight * torch.tensor(v) for n, v in seen.rewards.items()]
    return torch.stack(parts).sum(0)


def _term(recipe: Recipe, group: Group, state: ShapeState) -> Float32[Tensor, " K"]:
    """The perceptual term of one group, summed over the spaces."""
    trajectory, seen = group
    perceptual = recipe.perceptual
    if perceptual.entropy == "marginal":
        terms = [
            entropy.marginal_terms(_unit(seen, space), state.bandwidth[space])
            for space in perceptual.spaces
        ]
        return torch.stack(terms).sum(0)
    columns = [trajectory.steps.index(step) for step in trajectory.scored]
    omega = shaping.step_weights(torch.tensor(trajectory.std)[columns], perceptual.omega)
    terms: list[Tensor] = []
    for space in perceptual.spaces:
        log_p = torch.tensor(seen.log_p_perc[space])
        if perceptual.method == "pec":
            terms.append(shaping.pec_term(log_p, omega))
        else:
            old = torch.tensor(seen.log_p_policy)
            terms.append(shaping.pcvae_term(log_p, old, omega))
    return torch.stack(terms).sum(0)


def _bandwidths(recipe: Recipe, perceptions: Sequence[Perception], state: ShapeState) -> ShapeState:
    """Median bandwidths over the first step's groups, once."""
    if recipe.perceptual.entropy == "conditional" or state.bandwidth:
        return state
    bandwidth = {
        space: entropy.median_bandwidth(torch.stack([_unit(seen, space) for seen in perceptions]))
        for space in recipe.perceptual.spaces
    }
    return ShapeState(state.strength, bandwidth)


def _unit(seen: Perception, space: str) -> Float32[Tensor, "K D"]:
    return entropy.scale_features(torch.tensor(seen.features[space]), "unit")


def _strength(
    recipe: Recipe,
    rewards: Float32[Tensor, "G K"],
    terms: Float32[Tensor, "G K"],
    state: ShapeState,
) -> ShapeState:
    """Lambda: the recipe's, or scaled by the ratio of the standard deviations at the first step."""
    if state.strength is not None:
        return state
    strength = recipe.perceptual.strength
    if recipe.perceptual.strength_mode == "relative":
        strength = shaping.relative_lambda(rewards, terms, strength)
    return ShapeState(strength, state.bandwidth)


def _shaping_metrics(
    rewards: Float32[Tensor, "G K"],
    shaped: Float32[Tensor, "G K"],
    terms: Float32[Tensor, "G K"] | None,
    advantages: Float32[Tensor, "G K"],
    state: ShapeState,
) -> dict[str, float]:
    p_max, p_min = advantage.advantage_probability_range(advantages)
    metrics = {
        "reward/shaped_mean": shaped.mean().item(),
        "reward/global_std": rewards.std(correction=0).item(),
        "advantage/abs_mean": advantages.abs().mean().item(),
        "advantage/p_max": p_max.mean().item(),
        "advantage/p_min": p_min.mean().item(),
    }
    if terms is not None and state.strength is not None:
        metrics["shaping/term_std_in_group"] = terms.std(1, correction=0).mean().item()
        metrics["shaping/strength"] = state.strength
    return metrics
