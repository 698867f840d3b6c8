"""Memory that a recipe's workers and its cluster need, in bytes, from the sizes of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass

from percent_ray.learn.meter import BUCKETS
from percent_ray.preview.sizes import FLOAT32, Sizes
from percent_ray.recipe.tree import Recipe

Parts = Mapping[str, int]
"""Bytes by what they are for."""

ADAM = 2 * FLOAT32
"""AdamW's two moments of one weight."""


@dataclass(frozen=True)
class Memory:
    """What to have free. CUDA's own context and its allocator's slack, 1 to 2 GiB a process, and
    the activations of scorers come on top."""

    workers: Mapping[str, Parts]
    """By role, of one worker; under `runtime.backend` local of the one process."""
    store: Parts
    """Of the cluster's object store, or of the process's own memory without Ray."""
    checkpoint: int
    """Of one checkpoint on disk."""


def estimate(recipe: Recipe, sizes: Sizes) -> Memory:
    """Memory of a recipe whose parts have these sizes."""
    rollout = {
        "transformer": sizes.transformer,
        **sizes.text,
        "a batch drawn": sizes.draw,
    }
    perception = {
        "vae": sizes.vae,
        **({"tiny decoder": sizes.tiny} if sizes.tiny else {}),
        **{f"scorer {name}": size for name, size in sizes.scorers.items() if size},
        "a batch decoded": sizes.decode,
    }
    learner = {"transformer": sizes.transformer, **_learning(recipe, sizes)}
    workers: dict[str, Parts] = {
        "rollout": rollout,
        "perception": perception,
        "learner": learner,
    }
    if recipe.runtime.backend == "local":
        workers = {"process": _one_process(rollout, perception, learner)}
    return Memory(workers, _store(recipe, sizes), _checkpoint(recipe, sizes))


def _one_process(rollout: Parts, perception: Parts, learner: Parts) -> Parts:
    """One policy for rollout and learner; the stages follow each other."""
    work = ("a batch drawn", "a batch decoded", "a micro-batch learned")
    every = {**rollout, **perception, **learner}
    kept = {name: size for name, size in every.items() if name not in work}
    return kept | {"the largest of its stages": max(every[name] for name in work)}


def _learning(recipe: Recipe, sizes: Sizes) -> dict[str, int]:
    """Beside the weights: what one rank keeps and what a micro-batch takes."""
    backend, learner = recipe.runtime.backend, recipe.learner
    ranks = recipe.learner_ranks
    shared = ranks if backend == "ray" and learner.zero_stage else 1
    master = 0 if sizes.trained_bytes == FLOAT32 * sizes.trained else FLOAT32
    parts = {
        "optimizer": sizes.trained * (ADAM + master) // shared,
        "a micro-batch learned": sizes.learn,
    }
    if master and backend == "ray":  # DeepSpeed's bf16 mode sums gradients in float32
        parts["gradient sums"] = (
            sizes.trained * FLOAT32 // (shared if learner.zero_stage > 1 else 1)
        )
    if recipe.is_forward:  # its float32 average, and that in the trained weights' dtype
        parts["old policy"] = sizes.trained * FLOAT32 + (sizes.trained_bytes if master else 0)
    original = sizes.transformer if recipe.has_kl and not recipe.model.lora_rank else 0
    if held := original + _renewed(recipe, sizes):
        parts["reference policy"] = held
    return parts


def _renewed(recipe: Recipe, sizes: Sizes) -> int:
    """A reference that is made anew beside the original, which a LoRA's base is."""
    objective = recipe.objective
    anew = recipe.has_kl and (objective.reference_every or objective.reference_kl)
    return sizes.trained_bytes if anew else 0


def _store(recipe: Recipe, sizes: Sizes) -> dict[str, int]:
    ahead = recipe.runtime.max_staleness + 1
    groups = recipe.data.groups_per_step * ahead
    parts = {f"{groups} groups on their way": groups * sizes.group}
    if recipe.runtime.backend == "ray":
        parts[f"{ahead + 1} versions of the weights"] = (ahead + 1) * sizes.trained_bytes
    return parts


def _checkpoint(recipe: Recipe, sizes: Sizes) -> int:
    """Weights, moments, the EMA's and those for diffusers, and the last update's sketch."""
    ema = bool(recipe.learner.ema_decay)
    master = 0 if sizes.trained_bytes == FLOAT32 * sizes.trained else FLOAT32 * sizes.trained
    state = sizes.trained_bytes + master + sizes.trained * ADAM
    policy = sizes.trained * FLOAT32 if ema else sizes.trained_bytes
    old = sizes.trained * FLOAT32 if recipe.is_forward else 0
    sketch = 8 * BUCKETS
    averages = (sizes.trained * FLOAT32 if ema else 0) + old + _renewed(recipe, sizes)
    return sketch + state + policy + averages
