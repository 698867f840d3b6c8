"""Bounded staleness by construction.

A slot is the right to have one group on its way. The learner step that will consume a group is
fixed by the group's number: step n consumes groups n x G .. n x G + G - 1. A group of step n may be
sampled once version n - max_staleness is published, never before the last checkpoint's version, and
its slot is free again when version n + 1 is published. So at most (max_staleness + 1) x G slots are
taken at once, and the version that each group is drawn by is a function of its number alone: two
runs with the same recipe draw the same groups under the same versions, however fast their actors.

G = 2, max_staleness = 0 (synchronous), checkpoint_every = 100:

    version 0 is out   groups 0 1 are drawn by version 0
    step 0 publishes 1 groups 2 3 are drawn by version 1

G = 2, max_staleness = 1: the learner works on step n while step n + 1 is sampled.

    version 0 is out   groups 0 1 2 3 are drawn by version 0
    step 0 publishes 1 groups 4 5 are drawn by version 1, while the learner consumes 2 3

G = 2, max_staleness = 1, checkpoint_every = 2: a checkpoint is a barrier. A run that is resumed
there has nothing in flight, so neither has the run that went straight on.

    version 0 is out   groups 0 1 2 3 are drawn by version 0
    step 0 publishes 1 nothing new: step 2 waits for the checkpoint at version 2
    step 1 publishes 2 groups 4 5 6 7 are drawn by version 2

The same, stopped at version 1 and resumed there: a checkpoint between two barriers holds the older
weights, too, that the straight run has drawn the next groups by (`oldest`).

    version 1 is out   groups 2 3 are drawn by version 0
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One group to sample: its number, and the version that draws it."""

    group_id: int
    version: int


class Slots:
    """Hands out the slots of steps `version` .. `steps` - 1 in the order of their groups."""

    def __init__(
        self,
        *,
        groups_per_step: int,
        max_staleness: int,
        checkpoint_every: int,
        steps: int,
        version: int = 0,
        oldest: int | None = None,
    ) -> None:
        """`oldest`: the first version whose weights are there; `version` itself where None."""
        self.groups_per_step = groups_per_step
        self.max_staleness = max_staleness
        self.checkpoint_every = checkpoint_every
        self.steps = steps
        self.version = version
        self._next_step = version
        self._oldest = version if oldest is None else oldest

    def groups(self, step: int) -> range:
        """Numbers of the groups that `step` consumes."""
        return range(step * self.groups_per_step, (step + 1) * self.groups_per_step)

    def acquire(self) -> Iterator[Slot]:
        """Every slot that is free now."""
        while self._next_step < self.steps and self.drawn_by(self._next_step) <= self.version:
            step = self._next_step
            self._next_step += 1
            for group_id in self.groups(step):
                yield Slot(group_id, self.drawn_by(step))

    def publish(self, version: int) -> None:
        """Version `version` is out: the slots of step `version` - 1 are free."""
        assert version == self.version + 1, f"version {version} after {self.version}"
        self.version = version

    def drawn_by(self, step: int) -> int:
        """The version that draws the groups of a step: `max_staleness` back, not behind the last
        checkpoint, and of those whose weights are there."""
        return max(step - self.max_staleness, step - step % self.checkpoint_every, self._oldest)
