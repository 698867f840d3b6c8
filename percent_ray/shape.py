"""The third verb: a step's perceptions in, a batch with the method's weights out. Pure; runs on the
driver.

An image's reward is the weighted sum of its scores; what becomes of it is up to the recipe's method
(objective/methods.py).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.config import Recipe
from percent_ray.evaluation.diversity import variance_per_dimension, vendi
from percent_ray.flow.sde import HALF_LOG_2PI
from percent_ray.objective import advantage, entropy
from percent_ray.objective.methods import Shaped, Signals
from percent_ray.objective.strength import State
from percent_ray.types import Perception, ShapedBatch, ShapedRow, Trajectory

Group = tuple[Trajectory, Perception]


def shape(
    recipe: Recipe,
    step: int,
    version: int,
    groups: Sequence[Group],
    state: State,
    probe: Sequence[Group] = (),
) -> tuple[ShapedBatch, State, dict[str, float]]:
    """The learner's batch of `step`, the state for the next step, and the step's metrics.

    `probe` is the probe's groups at steps that have one. Dropped groups and groups that teach
    nothing are left out here, for all ranks alike. Raises ValueError where every group was dropped.
    """
    kept = [(trajectory, seen) for trajectory, seen in groups if not seen.dropped]
    if not kept:
        failures = sorted({line for _, seen in groups for line in seen.failures})
        raise ValueError(f"step {step}: every group was dropped; {'; '.join(failures)}")
    signals = _signals(recipe, kept, state, [g for g in probe if not g[1].dropped])
    shaped = recipe.method(signals)
    weights = shaped.weights
    if recipe.objective.kl:
        kl = torch.full_like(weights.advantage, recipe.objective.kl)
        held = kl if weights.kl_reference is None else kl + weights.kl_reference
        weights = replace(weights, kl_reference=held)
    teaches = weights.teaches(dims=2)
    rows = tuple(
        ShapedRow(
            trajectory.group_id,
            trajectory.version,
            trajectory.payload,
            trajectory.condition,
            weights.map(lambda weight, i=i: weight[i].clone()),
        )
        for i, (trajectory, _) in enumerate(kept)
        if teaches[i]
    )
    metrics = {
        **describe(recipe, kept),
        **_shaping_metrics(signals, shaped),
        "groups/dropped": float(len(groups) - len(kept)),
        "groups/zero_std": float(advantage.zero_std_groups(shaped.rewards).sum()),
        "groups/taught": float(len(rows)),
        "staleness/max": float(max(version - trajectory.version for trajectory, _ in kept)),
    }
    return ShapedBatch(step, version, rows), shaped.state, metrics


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
        closed = 0.5 + HALF_LOG_2PI + np.log(trajectory.std.astype(np.float64))
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
    """Weighted sum of the scores; judges weigh 0. An optional scorer that failed for the group adds
    nothing to any of its images, which leaves the differences in the group to the others."""
    parts = [recipe.scorers[n].weight * torch.tensor(v) for n, v in seen.rewards.items()]
    return torch.stack(parts).sum(0)


def _signals(
    recipe: Recipe, kept: Sequence[Group], state: State, probe: Sequence[Group]
) -> Signals:
    trajectories, perceptions = zip(*kept, strict=True)
    columns = [[t.steps.index(step) for step in t.scored] for t in trajectories]
    # An optional scorer may have failed for some groups: its scores are then not all there.
    scores = set.intersection(*(set(seen.rewards) for seen in perceptions))
    return Signals(
        group_ids=torch.tensor([t.group_id for t in trajectories]),
        rewards=torch.stack([_reward(recipe, seen) for seen in perceptions]),
        scores={k: _stack([seen.rewards[k] for seen in perceptions]) for k in scores},
        log_prob=_stack([seen.log_p_policy for seen in perceptions]),
        log_p_perc={
            space: _stack([seen.log_p_perc[space] for seen in perceptions])
            for space in recipe.measured_spaces(probe=False)
        },
        scored=torch.tensor(columns),
        std=torch.tensor(trajectories[0].std),
        features=_features(recipe, perceptions),
        probe=_features(recipe, [seen for _, seen in probe]) if probe else None,
        state=state,
        advantage_std=recipe.objective.advantage_std,
        advantage_clip=recipe.objective.advantage_clip,
        seed=recipe.run.seed,
    )


def _features(
    recipe: Recipe, perceptions: Sequence[Perception]
) -> dict[str, Float32[Tensor, "G K D"]]:
    """Unit-norm features of the finished images, by space."""
    return {
        space: entropy.scale_features(
            _stack([seen.features[space] for seen in perceptions]), "unit"
        )
        for space in recipe.image_spaces
    }


def _stack(values: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor(np.stack(values))


def _shaping_metrics(signals: Signals, shaped: Shaped) -> dict[str, float]:
    pull = shaped.weights.advantage
    p_max, p_min = advantage.advantage_probability_range(pull.mean(dim=-1))
    return {
        "reward/shaped_mean": shaped.rewards.mean().item(),
        "reward/global_std": signals.rewards.std(correction=0).item(),
        "advantage/abs_mean": pull.abs().mean().item(),
        "advantage/p_max": p_max.mean().item(),
        "advantage/p_min": p_min.mean().item(),
        **shaped.metrics,
    }
