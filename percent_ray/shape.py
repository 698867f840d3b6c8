"""The third verb: a step's perceptions in, a batch with the method's weights out. Pure; runs on the
driver.

An image's reward is the weighted sum of its scores, normalized or as they are; what becomes of it
is up to the recipe's method (objective/methods).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from percent_ray.metrics import (
    DIFFER,
    PERCEPTUAL_ENTROPY,
    POLICY_ENTROPY,
    SCHEDULE_ENTROPY,
    TAUGHT,
    VENDI,
)
from percent_ray.objective import advantage, entropy
from percent_ray.objective.diversity import variance_per_dimension, vendi
from percent_ray.objective.methods.base import Shaped, Signals
from percent_ray.objective.strength import State
from percent_ray.recipe.tree import Recipe
from percent_ray.types import Perception, ShapedBatch, ShapedRow, Trajectory

Group = tuple[Trajectory, Perception]


def shape(
    recipe: Recipe,
    version: int,
    groups: Sequence[Group],
    state: State,
    probe: Sequence[Group] = (),
) -> tuple[ShapedBatch, State, dict[str, float]]:
    """The learner's batch after `version`, the state for the next step, and the step's metrics.

    `probe` is the probe's groups at steps that have one. Dropped groups and groups that teach
    nothing are left out here, for all ranks alike. Raises ValueError where every group was dropped.
    """
    kept = [group for group in groups if not group[1].dropped]
    if not kept:
        failures = sorted({line for _, seen in groups for line in seen.failures.values()})
        raise ValueError(f"step {version}: every group was dropped; {'; '.join(failures)}")
    # Of the probes' groups features alone are read, which those with a failed reward have, too.
    signals = _signals(recipe, kept, state, probe)
    shaped = recipe.method(signals)
    weights = shaped.weights
    if recipe.objective.kl:
        kl = torch.full_like(weights.advantage, recipe.objective.kl)
        held = kl if weights.kl_reference is None else kl + weights.kl_reference
        weights = replace(weights, kl_reference=held)
    if weights.kl_reference is not None and recipe.objective.kl_steps and not recipe.is_forward:
        held = weights.kl_reference.clone()
        held[..., recipe.objective.kl_steps :] = 0
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
        **describe(recipe, groups),
        **_shaping_metrics(signals, shaped),
        "groups/dropped": float(len(groups) - len(kept)),
        "groups/zero_std": float(advantage.zero_std_groups(shaped.rewards).sum()),
        DIFFER: float((~advantage.zero_std_groups(signals.rewards)).float().mean()),
        TAUGHT: float(len(rows)),
        "staleness/max": float(max(version - trajectory.version for trajectory, _ in kept)),
    }
    return ShapedBatch(version, rows), shaped.state, metrics


def describe(recipe: Recipe, groups: Sequence[Group], *, every: bool = False) -> dict[str, float]:
    """Rewards, entropies and diversity of the groups, each averaged over those that have it, and
    the failed rewards of all; rewards are raw, whether or not they are normalized where they are
    learned from, and none is of a dropped group. `every`: only what all groups have, so that two
    probes are of the same prompts.

    `entropy/policy` is measured: -E log pi_old of the drawn latents. `entropy/policy_schedule` is
    the closed form of the transitions that drew them, which the first must equal up to its noise.
    The forward process has no transitions, so neither.
    """
    values: dict[str, list[float]] = {}
    paid = {name for name in recipe.scored if recipe.scorers[name].weight}
    # Without an optional score it is another sum: counted only where no group has the whole one.
    counted = [not seen.dropped and paid <= seen.rewards.keys() for _, seen in groups]
    if not (any(counted) or every):
        counted = [not seen.dropped for _, seen in groups]

    def note(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    for (trajectory, perception), counts in zip(groups, counted, strict=True):
        for name, scores in () if perception.dropped else perception.rewards.items():
            note(f"reward/{name}_mean", float(scores.mean()))
            note(f"reward/{name}_std_in_group", float(scores.std()))
        if counts:
            scores = {name: torch.tensor(of) for name, of in perception.rewards.items()}
            rewards = _weighted(recipe, scores)
            note("reward/mean", rewards.mean().item())
            note("reward/std_in_group", rewards.std(correction=0).item())
        if trajectory.steps:
            log_prob, std = torch.tensor(perception.log_p_policy), torch.tensor(trajectory.std)
            measured = entropy.policy_entropy(log_prob, std, kind=recipe.sampling.kind)
            note(POLICY_ENTROPY, measured.item())
            note(SCHEDULE_ENTROPY, float(trajectory.entropy.mean(dtype=np.float64)))
        for space, log_p in perception.log_p_perc.items():
            perceptual = entropy.perceptual_entropy(torch.tensor(log_p))
            note(f"{PERCEPTUAL_ENTROPY}{space}", perceptual.item())
        for space, encoded in perception.features.items():
            features = torch.tensor(encoded)
            note(f"{VENDI}{space}", vendi(features))
            note(f"diversity/variance_{space}", variance_per_dimension(features))
        for space, variance in perception.variance.items():
            note(f"diversity/variance_{space}", variance)
    failures = sum(len(perception.failures) for _, perception in groups)
    fewest = len(groups) if every else 1
    return {name: float(np.mean(v)) for name, v in values.items() if len(v) >= fewest} | {
        "groups/failed_rewards": float(failures)
    }


def _weighted(recipe: Recipe, scores: Mapping[str, Float32[Tensor, "*B"]]) -> Float32[Tensor, "*B"]:
    """The sum of the scores by their weights; judges weigh 0."""
    return torch.stack([recipe.scorers[name].weight * of for name, of in scores.items()]).sum(0)


def _scores(recipe: Recipe, perceptions: Sequence[Perception]) -> dict[str, Float32[Tensor, "G K"]]:
    """What is learned from: each score, normalized where the recipe says so.

    An optional scorer that failed for a group has there, for all of its images, its mean over the
    others: that leaves the differences in the group to the other scorers and the group's level
    where it was, which the std of all groups would otherwise take for a spread of rewards."""
    found: dict[str, Tensor] = {}
    for name in recipe.scored:
        there = {
            i: torch.tensor(p.rewards[name]) for i, p in enumerate(perceptions) if name in p.rewards
        }
        if not there:
            continue
        if recipe.scorers[name].normalize:
            there = {i: advantage.normalized(scores) for i, scores in there.items()}
        known = torch.stack([*there.values()])
        lacking = known.mean().expand(known.shape[1])
        found[name] = torch.stack([there.get(i, lacking) for i in range(len(perceptions))])
    return found


def _signals(
    recipe: Recipe, kept: Sequence[Group], state: State, probe: Sequence[Group]
) -> Signals:
    trajectories, perceptions = zip(*kept, strict=True)
    columns = [[t.steps.index(step) for step in t.scored] for t in trajectories]
    # An optional scorer may have failed for some groups: its scores are then not all there.
    scores = set.intersection(*(set(p.rewards) for p in perceptions))
    return Signals(
        group_ids=torch.tensor([t.group_id for t in trajectories]),
        rewards=_weighted(recipe, _scores(recipe, perceptions)),
        scores={k: _stack([p.rewards[k] for p in perceptions]) for k in scores},
        log_prob=_log_prob(recipe, perceptions, torch.tensor(trajectories[0].std)),
        log_p_perc={
            space: _stack([p.log_p_perc[space] for p in perceptions])
            for space in recipe.measured_spaces(probe=False)
        },
        scored=torch.tensor(columns, dtype=torch.int64),
        std=torch.tensor(trajectories[0].std),
        features=_features(recipe, perceptions),
        probe=_features(recipe, [perception for _, perception in probe]) if probe else None,
        state=state,
        advantage_std=recipe.objective.advantage_std,
        advantage_clip=recipe.objective.advantage_clip,
        seed=recipe.run.seed,
    )


def _log_prob(
    recipe: Recipe, perceptions: Sequence[Perception], std: Float32[Tensor, " S"]
) -> Float32[Tensor, "G K S"]:
    """log pi_old of the trained steps, also where what is learned from lacks its constants."""
    found = _stack([p.log_p_policy for p in perceptions])
    return entropy.whole_log_prob(found, std, kind=recipe.sampling.kind)


def _features(
    recipe: Recipe, perceptions: Sequence[Perception]
) -> dict[str, Float32[Tensor, "G K D"]]:
    """Unit-norm features of the finished images, by space."""
    return {
        space: entropy.scale_features(_stack([p.features[space] for p in perceptions]), "unit")
        for space in recipe.image_spaces
    }


def _stack(values: Sequence[np.ndarray]) -> Tensor:
    return torch.tensor(np.stack(values))


def _shaping_metrics(signals: Signals, shaped: Shaped) -> dict[str, float]:
    advantages = shaped.weights.advantage
    p_max, p_min = advantage.advantage_probability_range(advantages.mean(dim=-1))
    return {
        "reward/shaped_mean": shaped.rewards.mean().item(),
        "reward/global_std": signals.rewards.std(correction=0).item(),
        "advantage/abs_mean": advantages.abs().mean().item(),
        "advantage/p_max": p_max.mean().item(),
        "advantage/p_min": p_min.mean().item(),
        **shaped.metrics,
    }
