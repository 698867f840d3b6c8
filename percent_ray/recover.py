"""The loop, and again from the last checkpoint each time that the learner group is lost.

A checkpoint is a barrier: nothing is in flight there, and every draw is a function of ids. So the
numbers behind it are those of a run that nothing has happened to.
"""

import time
from collections.abc import Callable
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
    most, failures, loop = recipe.runtime.max_failures, 0, begin(progress)
    start, lost = 0.0, None
    source, last = None, progress
    while True:
        try:
            if lost is not None:
                progress = last
                await roles.restart(source, progress.version)
                say(
                    f"{first_line(lost)}; the learner group was built again in "
                    f"{time.monotonic() - start:.1f} s and goes on from {_name(source)} "
                    f"(failure {failures} of {most} until the next checkpoint)"
                )
                # Told to stop while the group was built: the new loop stops at its checkpoint.
                stopping, loop = loop.stopping, begin(progress)
                loop.stopping = stopping
            return await loop.run()
        except LearnerLost as error:
            source, last = _last(folder, recipe, say)
            failures = failures + 1 if last.version == progress.version else 1
            start, lost = time.monotonic(), error
            if failures > most or loop.stopping:
                raise LearnerLost(
                    f"{first_line(lost)}; the learner group is not built again from "
                    f"{_name(source)}: "
                    + (
                        "the run was to stop"
                        if loop.stopping
                        else f"runtime.max_failures is {most}"
                    )
                ) from error


def _last(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[Path | None, Progress]:
    """The newest whole checkpoint and where it stands."""
    source, passed = checkpoint.resumable(folder)
    for line in passed:
        say(line)
    if source is None:
        return None, Progress()
    state = checkpoint.read_state(source, recipe)
    return source, Progress(state.version, state.shape_state, state.oldest)


def _name(source: Path | None) -> str:
    return source.name if source else "the model before training"
