"""What a run says on standard output: a line a step, a progress bar where there is a terminal, and
a summary at the end."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from percent_ray.metrics import (
    IMAGES_PER_S,
    PERCEPTUAL_ENTROPY,
    POLICY_ENTROPY,
    REWARD,
    SHARED,
    STEP_S,
    VENDI,
    by_space,
)

if TYPE_CHECKING:
    from rich.console import Console


class Terminal:
    """Progress of a run of `steps` steps. A context manager.

    Where standard output is no terminal (the log of a Ray job) it prints plain lines that carry
    the ETA themselves.
    """

    def __init__(self, steps: int, *, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self.console = console or Console(highlight=False, soft_wrap=True)
        self._steps = steps
        self._first: tuple[int, float] | None = None
        """Steps done, and when, at the first step that was finished here."""
        self._bar = Progress(
            TextColumn("steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, left="-")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError, SystemExit):  # as in `say`
            self._bar.stop()

    def begin(self, first: int) -> None:
        """Step `first` is next."""
        self._first = None
        self._bar.update(self._task, completed=first, left="-")

    def say(self, text: str) -> None:
        """A line of its own, above the bar. Where nobody reads any more (`| head`, a lost ssh) the
        run goes on without: rich would end it."""
        try:
            self.console.print(text, markup=False)
        except (OSError, SystemExit):
            self.console.quiet = True

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """The line of one finished step; `step` counts from 0. The time left is counted from the
        first finished step on: start-up and the loading of models say nothing of the rest."""
        done, now, left = step + 1, time.monotonic(), ""
        if self._first is None:
            self._first = done, now
        else:
            before, start = self._first
            left = _clock((now - start) / (done - before) * (self._steps - done))
        self._bar.update(self._task, completed=done, left=left or "-")
        line = f"step {done:>{len(str(self._steps))}}/{self._steps}  {headline(metrics)}"
        self.say(f"{line}  ETA {left}" if left and not self.console.is_terminal else line)


def headline(metrics: Mapping[str, float]) -> str:
    """Reward, perceptual entropy, Vendi, images/s and seconds of one step, where measured."""
    parts = [f"reward {metrics[REWARD]:.4f}"] if REWARD in metrics else []
    for label, prefix in (("H_perc", PERCEPTUAL_ENTROPY), ("Vendi", VENDI)):
        spaces = by_space(metrics, prefix)
        parts += [f"{label}({space}) {value:.3f}" for space, value in spaces.items()]
    if IMAGES_PER_S in metrics:
        parts.append(f"{metrics[IMAGES_PER_S]:.1f} images/s")
    if STEP_S in metrics:
        parts.append(f"{metrics[STEP_S]:.1f} s")
    return "  ".join(parts)


def probe_line(version: int, metrics: Mapping[str, float], first: Mapping[str, float]) -> str:
    """What fixed prompts with fixed noise say, now and at the run's `first` probe: the steps' own
    numbers jump with their prompts and show no learning."""
    names = {"reward": REWARD, "shared move": SHARED}
    names |= {f"Vendi({space})": f"{VENDI}{space}" for space in by_space(metrics, VENDI)}
    parts = [f"probe after step {version}:"]
    for label, name in sorted(names.items()):
        if name not in metrics:
            continue
        before = f"{first[name]:.4f} -> " if name in first and version else ""
        parts.append(f" {label} {before}{metrics[name]:.4f}")
    return " ".join(parts)


def summary(
    *,
    run_id: str | None,
    tracking_uri: str,
    metrics_file: Path,
    checkpoint: Path | None,
    picture: Path | None,
    curves: Path | None,
    first: Mapping[str, float],
    last: Mapping[str, float],
    said: Sequence[str] = (),
) -> str:
    """The end of a run: what changed between its `first` and its `last` metrics, what is `said` of
    its steps, and where everything is."""
    lines = ["", "done"]
    for name in last:
        if name in (REWARD, POLICY_ENTROPY, SHARED) or name.startswith((PERCEPTUAL_ENTROPY, VENDI)):
            before = f"{first[name]:.4f}" if name in first else "-"
            lines.append(f"  {name:<34} {before} -> {last[name]:.4f}")
    lines += [f"  {line}" for line in said]
    places = {
        "checkpoint": checkpoint,
        "picture": picture,
        "curves": curves,
        "metrics": metrics_file,
        "MLflow run": run_id or "none; MLflow did not answer",
        "MLflow UI": ui_command(tracking_uri),
    }
    return "\n".join([*lines, *(f"  {k:<11} {v or '-'}" for k, v in places.items())])


def ui_command(tracking_uri: str) -> str:
    """How to look at the runs: the server itself, or the command that starts one."""
    if tracking_uri.startswith("http"):
        return tracking_uri
    return f"mlflow ui --backend-store-uri {tracking_uri}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
