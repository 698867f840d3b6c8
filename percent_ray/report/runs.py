"""What a run's folder has, as far as it was written: metrics, recipe, pictures of probes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from percent_ray.metrics import PROBE, REWARD, VENDI, by_space
from percent_ray.monitor import history, probes
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.report.recipe import read as read_recipe
from percent_ray.report.recipe import value_of
from percent_ray.report.rows import Steps

RUNS = Path("runs")
"""Where runs are looked for that are given by name."""


@dataclass(frozen=True)
class Run:
    """One training."""

    label: str
    folder: Path
    steps: Steps
    recipe: Mapping[str, Any]
    """As `report.recipe` reads it."""
    damaged: Sequence[int]
    """Numbers of the lines of the metrics file that cannot be read."""
    silent_s: float
    """Seconds since the metrics file was written."""

    def key(self, name: str, default: Any = None) -> Any:
        """A dotted key of the recipe; the default where it is not there, or null."""
        return value_of(self.recipe, name, default)

    @property
    def method(self) -> str:
        return str(self.key("method.name", "unknown"))

    @cached_property
    def reward(self) -> Mapping[str, float]:
        """Scorers of the reward and their weights."""
        weights = {n: (scorer or {}).get("weight") for n, scorer in self.key("scorers", {}).items()}
        return {name: float(weight) for name, weight in weights.items() if weight}

    @property
    def reward_name(self) -> str:
        """Of the reward, for people."""
        parts = [n if w == 1 else f"{w:g} x {n}" for n, w in self.reward.items()]
        return " + ".join(parts) or "reward"

    @cached_property
    def probes(self) -> Mapping[int, Mapping[str, float]]:
        """Metrics on fixed prompts and fixed noise, by step, those that have a reward."""
        found = {step: by_space(metrics, PROBE) for step, metrics in self.steps.items()}
        return {step: metrics for step, metrics in found.items() if REWARD in metrics}

    @property
    def vendi(self) -> list[str]:
        """Spaces in which probes have measured diversity."""
        return list(dict.fromkeys(s for m in self.probes.values() for s in by_space(m, VENDI)))

    @cached_property
    def trained(self) -> int:
        """Learner steps done."""
        done = [step for step, metrics in self.steps.items() if REWARD in metrics]
        return max(max(done, default=-1) + 1, max(self.probes, default=0))

    @property
    def state(self) -> str:
        """Whether the run has ended, in words."""
        asked = self.key("run.steps")
        if asked is None or self.trained >= asked:
            return f"{self.trained} steps"
        return (
            f"{self.trained} of {asked} steps: still going or stopped, its last line is "
            f"{_ago(self.silent_s)} old"
        )

    @cached_property
    def pictures(self) -> Mapping[int, Path]:
        return probes.files(self.folder)


def read_all(given: Sequence[str]) -> list[Run]:
    """Runs by folder, or by name in runs/; the newest one there where none is given. Labels are the
    folders' names, with as much of the path before them as tells them apart.

    Raises ValueError, in one line, for what is no run, has no metrics yet, or is given twice.
    """
    folders = [_find(name) for name in given] or [newest(RUNS)]
    paths = [folder.resolve() for folder in folders]
    if twice := next((folders[i] for i, path in enumerate(paths) if path in paths[:i]), None):
        raise ValueError(f"{twice} is given twice; give each run once")
    return [_read(folder, label) for folder, label in zip(folders, labels(paths), strict=True)]


def newest(folder: Path) -> Path:
    """The run in a folder whose metrics were written last. Raises ValueError where none is."""
    found = [path for path in folder.glob("*") if _is_run(path)]
    written = {p: (p / history.FILE).stat().st_mtime for p in found if (p / history.FILE).is_file()}
    if not written:
        raise ValueError(f"no run in {folder}/; train one (python jobs/train_pec.py) or give a RUN")
    return max(written, key=lambda path: written[path])


def labels(paths: Sequence[Path]) -> list[str]:
    """Names of folders, each with as many of its parents as tell it apart from the others."""
    found: list[str] = []
    for path in paths:
        others = [other for other in paths if other != path]
        deep = 1
        while deep < len(path.parts) and any(o.parts[-deep:] == path.parts[-deep:] for o in others):
            deep += 1
        found.append("/".join(path.parts[-deep:]))
    return found


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know before comparing, a line each."""
    return [*(line for run in runs for line in _notes(run)), *_unlike(runs)]


def _notes(run: Run) -> Iterator[str]:
    if run.damaged:
        numbers = ", ".join(map(str, run.damaged[:5])) + (", ..." if len(run.damaged) > 5 else "")
        yield (
            f"{run.label}: {len(run.damaged)} of its metrics file's lines are damaged and left out "
            f"(line {numbers})"
        )
    if "still going" in run.state:
        yield f"{run.label}: {run.state}; the same command later shows more"
    if not run.probes and not run.key("monitor.probe_every", 0):
        yield (
            f"{run.label} has no probes, which compare steps on the same prompts and noise: lines "
            "are as trained, every step with other prompts; set monitor.probe_every"
        )


def _unlike(runs: Sequence[Run]) -> Iterator[str]:
    """In what runs differ that should be equal in a comparison."""
    for what, then, value in (
        (
            "rewards",
            "compare the curves of a reward only within a run",
            lambda run: run.reward_name,
        ),
        ("models", "the same noise shows other pictures", lambda run: run.key("model.path")),
        ("probe prompts", "probes do not compare", _probed),
        ("seeds", "probes have other noise", lambda run: run.key("run.seed")),
        ("group sizes", "Vendi is of as many pictures", lambda run: run.key("sampling.group_size")),
    ):
        found = {run.label: value(run) for run in runs}
        if len(set(map(str, found.values()))) > 1:
            told = "; ".join(f"{label}: {value}" for label, value in found.items())
            yield f"The runs have different {what} ({told}): {then}"


def _probed(run: Run) -> str:
    prompts = run.key("data.probe_prompts") or run.key("data.prompts") or ""
    return f"{run.key('monitor.probe_groups')} of {Path(str(prompts)).name}"


def _find(name: str) -> Path:
    if "@" in name and not Path(name).exists():
        raise ValueError(
            f"{name}: a report is of whole runs; leave the step out: {name.split('@')[0]}"
        )
    for path in (Path(name), RUNS / name):
        if path.is_dir():
            if _is_run(path):
                return path
            inside = sorted(p.name for p in path.iterdir() if _is_run(p))
            hint = f"; it has runs in it: {', '.join(inside[:6])}" if inside else ""
            raise ValueError(f"{path} is no run, it has no {RECIPE_FILE}{hint}")
    known = sorted(path.name for path in RUNS.glob("*") if _is_run(path))
    there = f"; runs in {RUNS}/: {', '.join(known[:8])}" if known else ""
    raise ValueError(f"no run {name}: it is neither a folder nor a name in {RUNS}/{there}")


def _is_run(path: Path) -> bool:
    return (path / RECIPE_FILE).is_file()


def _read(folder: Path, label: str) -> Run:
    file = folder / history.FILE
    steps = history.read(file) if file.is_file() else {}
    damaged = history.damaged(file) if file.is_file() else []
    if not steps:
        if len(damaged) > 1:
            raise ValueError(f"no line of {file} can be read, all {len(damaged)} are damaged")
        raise ValueError(f"{folder} has no metrics yet; try again after its first probe or step")
    recipe = read_recipe(folder / RECIPE_FILE)
    silent = max(0.0, time.time() - file.stat().st_mtime)
    return Run(label, folder, steps, recipe, damaged, silent)


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
