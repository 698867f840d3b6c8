"""One input of a job, and what is to come of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Case:
    argv: str | tuple[str, ...]
    """Arguments; a text is cut at its spaces."""
    says: str | None = ""
    """A pattern that is in an `error:` line; None where the input is taken."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """Written into the folder that the job runs in, by path."""
    prepare: Callable[[Path], None] | None = None
    """Whatever else the folder needs; called in the case's own process."""
    job: str = "train_pec"
    """Module in jobs/. Of a training job nothing runs once it would begin to load models."""
    code: int = 2
    """Exit code of what is refused."""
    lines: int = 1
    """How many `error:` lines there are."""
    seconds: float = 20
    """After which it counts as a hang; on a busy machine a good one takes a tenth of a second."""

    @property
    def words(self) -> list[str]:
        return self.argv.split() if isinstance(self.argv, str) else list(self.argv)

    @property
    def name(self) -> str:
        said = " ".join([self.job, *self.words])
        files = " ".join(f"{name}: {content[:60]!r}" for name, content in self.files.items())
        return f"{said[:160]} {files[:160]}".strip()
