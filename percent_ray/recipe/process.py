"""What a recipe's keys mean under its `learner.process`, for the start of a run."""

from collections.abc import Iterator

from percent_ray.recipe.load import defaults, flatten
from percent_ray.recipe.tree import Recipe

REVERSE = (
    "sampling.noise_level",
    "sampling.kind",
    "sampling.window_size",
    "sampling.window_low",
    "sampling.window_high",
    "perceptual",
    "objective.kl_form",
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
    if unread := list(_unread(recipe)):
        process = recipe.learner.process
        lines.append(f"not read under learner.process {process}: {', '.join(unread)}")
    return lines


def _unread(recipe: Recipe) -> Iterator[str]:
    """Keys that differ from their defaults and have no effect, with their values."""
    usual = dict(flatten(defaults()))
    for key, value in flatten(recipe.model_dump(mode="json")):
        if value != usual.get(key, value) and any(
            f"{key}.".startswith(f"{k}.") for k in _of(recipe)
        ):
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
