"""`--dry-run`: what a recipe would do and need, on one page, without loading a weight."""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from percent_ray.data.prompts import PromptStream, of_recipe
from percent_ray.flow.sde import transition
from percent_ray.models import published, text
from percent_ray.models.base import family
from percent_ray.models.decoder import tiny_path
from percent_ray.objective.methods.flow_grpo import FlowGrpo
from percent_ray.preview import memory, sizes, stages
from percent_ray.preview.memory import Memory, Parts
from percent_ray.preview.sizes import Sizes
from percent_ray.preview.stages import Seconds
from percent_ray.recipe import load as recipes
from percent_ray.recipe.process import notes
from percent_ray.recipe.section import AnyMethod
from percent_ray.recipe.tree import MOST, Recipe, Scorer
from percent_ray.runtime import placement
from percent_ray.types import Prompt

GIB = 2**30


def show(recipe: Recipe, *, measure: bool, images_per_hour: float | None, tflops: float) -> None:
    """Print the page. `measure` runs a few steps for its times. Raises ValueError, in one line, for
    what a run would be refused for, as far as that can be seen without its weights."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    prompts, _ = of_recipe(recipe)
    with tempfile.TemporaryDirectory() as folder:
        model, source = published.at_hand(recipe.model, Path(folder))
        placed = _with_tiny(recipe, Path(folder)).model_copy(update={"model": model})
        found = sizes.measure(placed)
        cut = _cut(placed, prompts)
        guess = stages.guessed(placed, found, tflops=tflops)
        trained = found.policy.describe().replace(model.path, recipe.model.path)
    room = memory.estimate(recipe, found)
    print(f"dry run of {recipe.run.name}: no weight is loaded, nothing is trained\n")
    for title, lines in (
        ("recipe", _changed(recipe)),
        ("model", [f"configs from {source}", trained, *_model(recipe, found)]),
        ("a step", _step(recipe, len(prompts))),
        ("schedule", _schedule(recipe, found)),
        ("prompts", [f"{len(prompts)} of {recipe.data.prompts}", *cut, _first(recipe, prompts)]),
        ("memory", [*_memory(room), *_automatic(recipe)]),
        ("notes", notes(recipe)),
    ):
        _section(title, lines)
    if measure:
        seconds, real = stages.measured(recipe)
        _section("time", _time(recipe, seconds, real, images_per_hour))
    elif recipe.runtime.learner.gpus:
        _section("time", _time(recipe, guess, None, images_per_hour))
    else:
        _section("time", ["not guessed for CPUs; --measure measures a step"])
    _section("this cluster", _cluster(recipe, room))


def _section(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    print(title)
    for line in lines:
        print(f"  {line}")
    print()


def _changed(recipe: Recipe) -> list[str]:
    """Every key that differs from the defaults."""
    usual = dict(recipes.flatten(recipes.defaults()))
    # Of tables whose keys are not all known beforehand.
    entries = {f"scorers.{name}": Scorer().model_dump() for name in recipe.scorers}
    entries["method"] = _defaults(recipe.method) | {"name": FlowGrpo.name}
    for table, keys in entries.items():
        usual |= dict(recipes.flatten({table: keys}))
    given = recipes.flatten(recipe.model_dump(mode="json"))
    return [f"{key} {value}" for key, value in given if usual.get(key) != value]


def _defaults(method: AnyMethod) -> dict[str, Any]:
    fresh: Any = type(method)()
    return asdict(fresh)


def _model(recipe: Recipe, found: Sizes) -> list[str]:
    height, width = recipe.model.size
    lines = [
        f"latents {' x '.join(map(str, found.policy.latent_shape))} of {height} x {width} pixels",
        f"{found.velocity_flops / 1e12:.3g} TFLOP a velocity of one image with its guidance; "
        f"{found.decode_flops / 1e12:.3g} to decode one",
    ]
    unknown = [name for name, size in found.scorers.items() if size is None]
    if unknown:
        lines.append(f"not counted: scorers {', '.join(unknown)}, which are not at hand")
    return lines


def _step(recipe: Recipe, prompts: int) -> list[str]:
    images, groups = recipe.trained_images, recipe.data.groups_per_step
    updates, ranks = recipe.learner.updates, recipe.learner_ranks
    total = recipe.run.steps * groups
    return [
        f"{groups} groups of {recipe.sampling.group_size} = {images} images; {updates} optimizer "
        f"steps of {images // updates}, on {ranks} learners in micro-batches of "
        f"{recipe.learner.micro_batch}",
        f"{recipe.run.steps} steps in all: {recipe.run.steps * images:,} images, every prompt "
        f"{total / prompts:.3g} times, {recipe.run.steps * updates:,} optimizer steps",
    ]


def _schedule(recipe: Recipe, found: Sizes) -> list[str]:
    sampling = recipe.sampling
    sigmas = found.policy.sigmas(sampling.steps)
    lines = [f"sigma {' '.join(f'{sigma:.4f}' for sigma in sigmas.tolist())}"]
    if recipe.is_forward:
        return [*lines, f"groups are drawn by the ODE ({sampling.solver}), without noise"]
    steps = recipe.trained_steps(0)
    zeros = torch.zeros(1, 1, 1, 1)
    drawn = [
        transition(
            zeros,
            zeros,
            sigmas[i],
            sigmas[i + 1],
            sigma_second=sigmas[1],
            noise_level=sampling.noise_level,
            kind=sampling.kind,
        )
        for i in steps
    ]
    window = f", a window of {len(steps)} each step" if sampling.window_size else ""
    entropy = sum(step.entropy().item() for step in drawn) / len(drawn)
    return [
        *lines,
        f"trained steps {steps.start} to {steps.stop - 1}{window}; std "
        f"{' '.join(f'{step.std.item():.3f}' for step in drawn)}",
        f"policy entropy {entropy:.3f} nats a dimension, whatever is learned",
    ]


def _cut(recipe: Recipe, prompts: Sequence[Prompt]) -> list[str]:
    """How many prompts each tokenizer cuts off."""
    found = text.cut(recipe.model, [prompt.text for prompt in prompts])
    lines = [
        f"{name} cuts {cut.prompts} of {len(prompts)} at {cut.most} tokens, the longest has "
        f"{cut.longest}"
        for name, cut in found.items()
    ]
    return lines or ["cut prompts are not counted: the tokenizers' files are not at hand"]


def _first(recipe: Recipe, prompts: Sequence[Prompt]) -> str:
    first = PromptStream(prompts, seed=recipe.run.seed).prompt(0)
    return f"the first one: {first.text[:80]}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / 2**20:.1f} MiB"


def _memory(room: Memory) -> list[str]:
    def row(name: str, parts: Parts) -> str:
        listed = ", ".join(f"{what} {_size(size)}" for what, size in parts.items())
        return f"{name} {_size(sum(parts.values()))}: {listed}"

    return [
        *(
            row(f"a {role} worker" if role != "process" else "this process", parts)
            for role, parts in room.workers.items()
        ),
        row("object store", room.store),
        f"a checkpoint {_size(room.checkpoint)} on disk",
        "beside that: CUDA's context and slack, and the activations of scorers",
    ]


def _with_tiny(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a path of its tiny decoder, where it has one, that can be read."""
    if not recipe.scores_by_tiny:
        return recipe
    default = family(recipe.model.family).TINY
    path = tiny_path(recipe.model, recipe.perceptual.tiny_path, default)
    found = published.tiny_at_hand(path, folder / "tiny")
    return recipe.model_copy(
        update={"perceptual": recipe.perceptual.model_copy(update={"tiny_path": found})}
    )


def _automatic(recipe: Recipe) -> list[str]:
    if recipe.perceptual.batch_size != "auto":
        return []
    return [
        f"perceptual.batch_size auto is counted as {MOST} images, its most: on a GPU it takes as "
        "many as fit when all is loaded"
    ]


def _time(
    recipe: Recipe, seconds: Seconds, real: float | None, images_per_hour: float | None
) -> list[str]:
    step, images = seconds.step(recipe), recipe.trained_images
    parts = ", ".join(f"{role} {_digits(total)}" for role, total in seconds.by_role.items())
    lines = [
        seconds.source,
        f"worker-seconds of a step: {parts}",
        f"a step in {_digits(step)} s, {3600 * images / step:,.0f} images an hour, the run in "
        f"{_digits(recipe.run.steps * step / 3600)} h",
    ]
    if real is not None:
        lines.append(f"that step itself took {_digits(real)} s")
    if recipe.runtime.backend == "local":
        return lines
    lines.append(f"so that none waits: {_workers(seconds.needed(_slowest(recipe, seconds)))}")
    if images_per_hour is not None:
        wanted = 3600 * images / images_per_hour
        lines.append(
            f"for {images_per_hour:,.0f} images an hour, a step in {_digits(wanted)} s: "
            f"{_workers(seconds.needed(wanted))}"
        )
    return lines


def _digits(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def _slowest(recipe: Recipe, seconds: Seconds) -> float:
    """Of the learner, which has to be fed."""
    return seconds.by_role["learner"] / recipe.runtime.learner.workers


def _workers(needed: Mapping[str, int]) -> str:
    listed = ", ".join(f"{role} {count}" for role, count in needed.items())
    return f"workers {listed}"


def _cluster(recipe: Recipe, room: Memory) -> list[str]:
    """Whether it can give what the recipe asks: that of RAY_ADDRESS, or this machine."""
    resources = placement.resources()
    cards = [_card(index) for index in range(torch.cuda.device_count())]
    lines = [
        f"{resources['CPU']:g} CPUs, {resources['GPU']:g} GPUs, {resources['memory'] / GIB:.0f} GiB"
        + "".join(f"; a GPU of {card:.0f} GiB here" for card in cards)
    ]
    if recipe.runtime.backend == "local":
        return lines
    try:
        placement.check(recipe, placement.machines())
        lines.append("it can give what the recipe asks")
    except ValueError as error:
        lines.append(f"it cannot: {error}")
    asked = Counter[str]()
    for role in stages.STAGES:
        settings = getattr(recipe.runtime, role)
        asked["GPUs"] += settings.workers * settings.gpus
        asked["CPUs"] += settings.workers * settings.cpus
    largest = max((sum(parts.values()), role) for role, parts in room.workers.items())
    lines.append(
        f"asked: {asked['GPUs']:g} GPUs, {asked['CPUs']:g} CPUs; the largest worker is a "
        f"{largest[1]}, {_size(largest[0])}"
    )
    return lines


def _card(index: int) -> float:
    return torch.cuda.get_device_properties(index).total_memory / GIB
