"""What the runs of a comparison have left behind."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from percent_ray.comparison.plan import Comparison, Plan, Row
from percent_ray.comparison.runs import BASE, PICTURES, RESULT, SELECTION, folder_of
from percent_ray.config import Recipe
from percent_ray.evaluation.quality import LATENT
from percent_ray.monitor import history

Curve = tuple[np.ndarray, np.ndarray]
"""(versions, values), both [n]."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    row: str
    seed: int
    folder: Path
    evaluations: Mapping[int, Mapping[str, float]]
    """The judged checkpoints by version, the base model as version 0."""
    steps: Mapping[int, Mapping[str, float]]
    """The metrics file: of every step, and under `probe/` of every probe."""

    @property
    def last(self) -> Mapping[str, float]:
        return self.evaluations[max(self.evaluations)]

    def judged(self, name: str) -> Curve:
        """A metric over the judged checkpoints."""
        versions = sorted(self.evaluations)
        return np.array(versions), np.array([self.evaluations[v][name] for v in versions])

    def pictures(self) -> np.ndarray:
        """Of the last checkpoint, uint8 [P, K, 3, H, W]."""
        return _pictures(self.folder)

    def curve(self, name: str) -> Curve:
        """A metric of the metrics file over the steps that have it."""
        found = sorted((step, m[name]) for step, m in self.steps.items() if name in m)
        return np.array([s for s, _ in found]), np.array([v for _, v in found])


@dataclass(frozen=True)
class Results:
    """The finished runs of a comparison."""

    comparison: Comparison
    base: Mapping[str, float]
    """The model before training."""
    runs: Mapping[str, Sequence[Run]]
    """By row, in the rows' order; rows without a finished run are left out."""
    trained_on: Mapping[str, frozenset[str]]
    """By row, the scorers whose spaces its reward or its method has used."""
    selection: Sequence[Mapping[str, float]]
    """Metrics of the base model's own pictures, chosen by the reward ever more strictly, the first
    not at all; empty where that was not asked for."""

    @property
    def rows(self) -> Mapping[str, Row]:
        return {name: self.comparison.rows[name] for name in self.runs}

    @property
    def reward(self) -> str:
        """The metric that the frontier is drawn over."""
        return f"quality/{self.comparison.evaluation.judges[0]}"

    @property
    def quality(self) -> list[str]:
        return [f"quality/{name}" for name in self.comparison.evaluation.judges]

    @property
    def diversity(self) -> list[str]:
        """Variances of the encoders that are not the reward's, and Vendi in every space."""
        encoders = self.comparison.evaluation.encoders
        reward = self.comparison.evaluation.judges[0]
        return [f"variance/{name}" for name in encoders if name != reward] + self.vendi

    @property
    def vendi(self) -> list[str]:
        """Vendi in every space."""
        return [f"vendi/{name}" for name in (*self.comparison.evaluation.encoders, LATENT)]

    @property
    def reference(self) -> str | None:
        """The first reference row that has a finished run."""
        return next((n for n, row in self.rows.items() if row.kind == "reference"), None)

    def base_pictures(self) -> np.ndarray:
        """The same prompts and noise by the model before training, uint8 [P, K, 3, H, W]."""
        return _pictures(self.comparison.home / "runs" / BASE)


def _pictures(folder: Path) -> np.ndarray:
    with np.load(folder / PICTURES) as file:
        return file["images"]


def read(plan: Plan, table: str = "1") -> Results:
    """The results so far of the rows of one table. Raises ValueError where the base model has not
    been judged."""
    comparison = plan.comparison
    path = comparison.home / "runs" / BASE / RESULT
    if not path.is_file():
        raise ValueError(f"no results in {comparison.home}: {path} is not there")
    base = json.loads(path.read_text())["versions"]["0"]
    runs: dict[str, list[Run]] = {}
    for row in (name for name, row in comparison.rows.items() if row.table == table):
        for seed in comparison.seeds:
            folder = folder_of(plan.recipe(row, seed))
            if not (folder / RESULT).is_file():
                continue
            found = json.loads((folder / RESULT).read_text())["versions"]
            evaluations = {0: base} | {int(version): m for version, m in found.items()}
            steps = history.read(folder / "metrics.jsonl")
            runs.setdefault(row, []).append(Run(row, seed, folder, evaluations, steps))
    used = {row: _trained_on(plan.recipe(row, comparison.seeds[0])) for row in runs}
    return Results(comparison, base, runs, used, _selection(comparison))


def _selection(comparison: Comparison) -> Sequence[Mapping[str, float]]:
    path = comparison.home / "runs" / BASE / SELECTION
    return json.loads(path.read_text())["strengths"] if path.is_file() else ()


def _trained_on(recipe: Recipe) -> frozenset[str]:
    reward = {name for name, scorer in recipe.scorers.items() if scorer.weight}
    method = recipe.method
    return frozenset(
        {*reward, *getattr(method, "spaces", ()), *getattr(method, "image_spaces", ())}
    )
