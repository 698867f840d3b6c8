"""Which rewards have failed, for how many groups, and with which words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Failed:
    """Counts the groups of a run since it was started or resumed."""

    groups: int = 0
    """Perceived in all."""
    _counts: dict[str, int] = field(default_factory=dict[str, int])
    """Of the groups that a scorer failed for, by its name, and its first line below."""
    _first: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, step: int, groups: Sequence[Mapping[str, str]]) -> Iterator[str]:
        """What the groups of a step (which counts from 0) add: a line for each scorer that fails
        for the first time. `groups` holds the lines of the scorers that failed for each."""
        self.groups += len(groups)
        here: dict[str, int] = {}
        for failures in groups:
            for name, line in failures.items():
                here[name] = here.get(name, 0) + 1
                self._first.setdefault(name, line)
        for name, count in here.items():
            if name not in self._counts:
                yield (
                    f"step {step + 1}: {self._first[name]} (for {count} of {len(groups)} groups; "
                    "told at its first failure only)"
                )
            self._counts[name] = self._counts.get(name, 0) + count

    def always(self) -> list[str]:
        """A line for each scorer that has failed for every group."""
        return [line for name, line in self._lines() if self._counts[name] == self.groups]

    def words(self) -> list[str]:
        """A line for each scorer that has failed at all."""
        return [line for _, line in self._lines()]

    def _lines(self) -> Iterator[tuple[str, str]]:
        for name, count in self._counts.items():
            if count == self.groups:
                told = f"every one of {count} groups and is no part of the reward"
            else:
                told = f"{count} of {self.groups} groups"
            yield name, f"scorers.{name} failed for {told}; first: {self._first[name]}"
