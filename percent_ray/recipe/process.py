"""What a recipe's keys mean under its `learner.process`, for the start of a run."""

from collections.abc import Iterator
from pathlib import Path

from percent_ray.recipe import secret
from percent_ray.recipe.load import defaults, flatten, within
from percent_ray.recipe.tree import Perceptual, Recipe

REVERSE = (
    "sampling.noise_level",
    "sampling.kind",
    "sampling.window_size",
    "sampling.window_low",
    "sampling.window_high",
    *(
        f"perceptual.{key}"
        for key in ("spaces", "measure", "decode", "decoder", "tiny_path", "feature_scale", "steps")
    ),
    "objective.kl_form",
    "objective.kl_steps",
    "objective.ratio",
    "objective.step_weights",
    "objective.old_log_prob",
)
"""Keys and sections of transitions."""
FORWARD = ("forward", "learner.old")


def notes(recipe: Recipe) -> list[str]:
    """Lines that say what the process measures and which of the recipe's keys it does not read."""
    lines: list[str] = []
    if recipe.is_forward:
        lines.append(
            "learner.process forward: groups are drawn by the ODE; without transitions policy and "
            "perceptual entropy have no meaning and are not measured"
        )
        if recipe.model.guidance > 1:
            lines.append(
                f"model.guidance {recipe.model.guidance:g}: groups are drawn with it and the "
                "velocity under it is trained; DiffusionNFT is published without guidance"
            )
    elif recipe.objective.old_log_prob == "replayed" and recipe.runtime.max_staleness:
        lines.append(
            "objective.old_log_prob replayed: the ratio begins at 1 also for groups that older "
            f"weights have drawn (runtime.max_staleness {recipe.runtime.max_staleness}); how far "
            "the weights have moved since is not in it"
        )
    if not recipe.is_forward:
        lines += _decoder(recipe.perceptual, recipe.measured_spaces(probe=True))
    if unread := list(_unread(recipe)):
        process = recipe.learner.process
        lines.append(f"not read under learner.process {process}: {', '.join(unread)}")
    part = recipe.trained_images // recipe.learner.updates
    if part <= recipe.learner.micro_batch:
        lines.append(
            f"signal and noise are not measured: an optimizer step of {part} images is one "
            "micro-batch; set learner.micro_batch to half of it or less"
        )
    lines += _idle(recipe)
    learners = recipe.runtime.learner.workers
    if part < learners:
        lines.append(
            f"{learners - part} of {learners} learners have no image of an optimizer step's {part} "
            f"and only keep the others company; set runtime.learner.workers {part}"
        )
    if recipe.data.groups_per_step % learners:
        lines.append(
            f"signal and noise are not measured: {recipe.data.groups_per_step} groups do not "
            f"divide among {learners} learners; set data.groups_per_step to a multiple"
        )
    if "working_dir_files" in (folder := Path(recipe.run.folder).resolve()).parts:
        lines.append(
            f"run.folder {recipe.run.folder}: is {folder}, in Ray's copy of --working-dir, which "
            "Ray deletes in time and the next job does not see; give --run.folder a place that "
            "lasts, such as $PWD/runs"
        )
    if secret.public(recipe.monitor.tracking_uri) != recipe.monitor.tracking_uri:
        lines.append(
            "monitor.tracking_uri: its user, password and query are written nowhere; give it again "
            "with --resume"
        )
    return lines


def _idle(recipe: Recipe) -> Iterator[str]:
    """Of workers that can never all have a group."""
    if recipe.runtime.backend == "local":
        return
    groups = recipe.groups_in_flight
    for name in ("rollout", "perception"):
        role = getattr(recipe.runtime, name)
        key = "max_workers" if role.max_workers > role.workers else "workers"
        if getattr(role, key) > groups:
            yield (
                f"runtime.{name}.{key} {getattr(role, key)}: at most {groups} groups are in flight "
                f"(data.groups_per_step {recipe.data.groups_per_step} x "
                f"(runtime.max_staleness {recipe.runtime.max_staleness} + 1)), "
                f"{getattr(role, key) - groups} workers would never have one; set {groups} or less"
            )


def _decoder(perceptual: Perceptual, spaces: tuple[str, ...]) -> Iterator[str]:
    """Of a tiny decoder that is not used."""
    if perceptual.decoder == "full" and perceptual.tiny_path:
        yield f"perceptual.decoder full: perceptual.tiny_path {perceptual.tiny_path} is not read"
    if perceptual.decoder == "tiny" and not spaces:
        yield (
            "perceptual.decoder tiny is not loaded: no transition is scored, for neither "
            "perceptual.spaces nor the method names a space"
        )
    elif perceptual.decoder == "tiny" and perceptual.decode == "noisy":
        yield (
            "perceptual.decoder tiny: samples are decoded noisy, and tiny decoders know clean "
            "latents only; jobs/compare_decoders.py shows whether it ranks them as the VAE does, "
            "which on the embedded world it does with perceptual.decode clean alone"
        )


def _unread(recipe: Recipe) -> Iterator[str]:
    """Keys that differ from their defaults and have no effect, with their values."""
    usual = dict(flatten(defaults()))
    for key, value in flatten(recipe.model_dump(mode="json")):
        if value != usual.get(key, value) and within(key, _of(recipe)):
            yield f"{key} {value}"


def _of(recipe: Recipe) -> Iterator[str]:
    if not recipe.is_forward:
        yield from FORWARD
        return
    yield from REVERSE
    forward = recipe.forward
    if forward.loss == "nft":
        yield from ("objective.clip_low", "objective.clip_high")
    else:
        yield "forward.beta"
    yield "sampling.train_fraction" if forward.distribution == "shifted" else "forward.shift"
