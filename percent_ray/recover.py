"""The loop, and again from the last checkpoint each time that the learner group is lost.

A checkpoint is a barrier: nothing is in flight there, and every draw is a function of ids. So the
numbers behind it are those of a run that nothing has happened to.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from percent_ray.learn import checkpoint
from percent_ray.loop import Loop, Progress
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.tree import Recipe
from percent_ray.types import LearnerLost


class Restarts(Protocol):
    """Roles of which the learner can be lost."""

    async def restart(self, source: Path | None, version: int) -> None:
        """Another learner group, at the `version` of the checkpoint `source`, or before training.
        Returns when it has loaded; raises LearnerLost where it is lost, too."""
        ...


async def run(
    begin: Callable[[Progress], Loop],
    progress: Progress,
    roles: Restarts,
    *,
    recipe: Recipe,
    folder: Path,
    say: Callable[[str], None],
) -> Progress:
    """Train to `run.steps`. `begin` makes the loop that goes on from a progress.

    Raises LearnerLost where the group is lost more than `runtime.max_failures` times without a new
    checkpoint, and where the run was to stop anyway.
    """
    most, loop = recipe.runtime.max_failures, begin(progress)
    lost: list[LearnerLost] = []
    source, last = None, progress
    while True:
        try:
            if lost:
                progress, start = last, time.monotonic()
                await roles.restart(source, progress.version)
                say(
                    f"the learner group was built again in {time.monotonic() - start:.1f} s and "
                    f"goes on from {_name(source)}"
                )
                # Told to stop while the group was built: the new loop stops at its checkpoint.
                stopping, loop = loop.stopping, begin(progress)
                loop.stopping = stopping
            return await loop.run()
        except LearnerLost as error:
            source, last = _last(folder, recipe, say)
            lost = [*lost, error] if last.version == progress.version else [error]
            if len(lost) > most or loop.stopping:
                why = "the run was to stop" if loop.stopping else f"runtime.max_failures is {most}"
                raise LearnerLost(
                    f"{_causes(lost)}; the learner group is not built again from {_name(source)}: "
                    f"{why}"
                ) from error
            say(
                f"{first_line(error)}; the learner group is being built again from "
                f"{_name(source)} (failure {len(lost)} of {most} until the next checkpoint)"
            )


def _last(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[Path | None, Progress]:
    """The newest whole checkpoint and where it stands."""
    source, passed = checkpoint.resumable(folder)
    for line in passed:
        say(line)
    if source is None:
        return None, Progress()
    state = checkpoint.read_state(source, recipe)
    return source, Progress(state.version, state.shape_state, state.oldest)


def _causes(lost: Sequence[LearnerLost]) -> str:
    """The last, and the first where that was another: what follows from it may say less."""
    first, last = first_line(lost[0]), first_line(lost[-1])
    return last if first == last else f"{last} (at first: {first})"


def _name(source: Path | None) -> str:
    return source.name if source else "the model before training"
