"""What the runs of a comparison leave behind in their folders."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from percent_ray.comparison import stored
from percent_ray.comparison.plan import BASE, Comparison, Plan, Row
from percent_ray.evaluation.judge import Protocol
from percent_ray.evaluation.quality import CENTRED, SPACES
from percent_ray.metrics import IMAGES_PER_S, STEP_S
from percent_ray.monitor import history
from percent_ray.recipe import load as recipes
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.tree import Recipe
from percent_ray.report.rows import Curve

DIVERGED = "the run has diverged: leave it out with --only or --seeds, or set its row's learner.lr"
"""What is true of numbers that are not finite."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    row: str
    seed: int
    folder: Path
    evaluations: Mapping[int, Mapping[str, float]]
    """The judged checkpoints by version, the base model as version 0."""
    steps: Mapping[int, Mapping[str, float]]
    """The metrics file in order: of every step, and under `probe/` of every probe."""

    @property
    def last(self) -> Mapping[str, float]:
        return self.evaluations[max(self.evaluations)]

    def judged(self, name: str) -> Curve:
        """A metric over the judged checkpoints."""
        versions = sorted(self.evaluations)
        return np.array(versions), np.array([self.evaluations[v][name] for v in versions])

    def spent(self) -> tuple[np.ndarray, np.ndarray]:
        """Images sampled and seconds of training up to each judged checkpoint, in order; empty
        where the metrics file lacks a step of them."""
        try:
            seconds = [self.steps[step][STEP_S] for step in range(max(self.evaluations))]
            speeds = [self.steps[step][IMAGES_PER_S] for step in range(max(self.evaluations))]
        except KeyError:
            return np.array([]), np.array([])
        images = np.array(seconds) * speeds
        sums = (np.concatenate([[0.0], np.cumsum(values)]) for values in (images, seconds))
        versions = sorted(self.evaluations)
        sampled, clock = (values[versions] for values in sums)
        return sampled, clock

    def pictures(self) -> np.ndarray:
        """Of the last checkpoint, uint8 [P, K, 3, H, W]."""
        return stored.pictures(self.folder)


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
    units: Mapping[str, str]
    """Of the quality columns."""
    selection: Sequence[Mapping[str, float]]
    """Metrics of the base model's own pictures, chosen by the reward ever more strictly, the first
    not at all; empty where that was not asked for."""

    @property
    def rows(self) -> Mapping[str, Row]:
        return {name: self.comparison.rows[name] for name in self.runs}

    @property
    def references(self) -> list[Run]:
        """The runs of all reference rows."""
        names = [name for name, row in self.rows.items() if row.kind == "reference"]
        return [run for name in names for run in self.runs[name]]

    @property
    def reward(self) -> str:
        """The metric that the frontier is drawn over."""
        return f"quality/{self.comparison.evaluation.judges[0]}"

    @property
    def by_task(self) -> bool:
        """Whether that judge's benchmark has tasks, as GenEval's."""
        judge = self.comparison.evaluation.judges[0]
        return any(name.startswith(f"{judge}/") for name in self.base)

    @property
    def quality(self) -> list[str]:
        return [f"quality/{name}" for name in self.comparison.evaluation.judges]

    @property
    def diversity(self) -> list[str]:
        """Table 1's: variances of the encoders that are not the reward's, and Vendi in every space
        once, so without `CENTRED`."""
        once = [name for name in self.vendi if name != f"vendi/{CENTRED}"]
        return [f"variance/{name}" for name in self.others] + once

    @property
    def others(self) -> list[str]:
        """The encoders that are not the reward's."""
        protocol = self.comparison.evaluation
        return [name for name in protocol.encoders if name != protocol.judges[0]]

    @property
    def vendi(self) -> list[str]:
        """Vendi in every space."""
        return [f"vendi/{name}" for name in (*self.comparison.evaluation.encoders, *SPACES)]

    @property
    def reference(self) -> str | None:
        """The first reference row that has a finished run."""
        return next((n for n, row in self.rows.items() if row.kind == "reference"), None)

    def base_pictures(self) -> np.ndarray:
        """The same prompts and noise by the model before training, uint8 [P, K, 3, H, W]."""
        return stored.pictures(self.comparison.runs / BASE)


def read(plan: Plan, table: str = "1") -> Results:
    """The results so far of the rows of one table. Those that were made or judged in another way
    than the plan's are left out: `strangers` names them. Raises ValueError where the base model has
    not been judged, and for a file that is damaged or has a number that is not finite."""
    comparison = plan.comparison
    untrained = stored.result(comparison.runs / BASE)
    if not is_base_judged(plan):
        another = "; what is there was judged in another way" if untrained else ""
        raise ValueError(
            f"no results in {comparison.runs / BASE}; run the comparison first{another}"
        )
    stored.require_finite(comparison.runs / BASE, untrained, "delete it to have it judged again")
    base = untrained["versions"][0]
    tasks = [n for n in base if n.startswith(tuple(f"{j}/" for j in comparison.evaluation.judges))]
    runs: dict[str, list[Run]] = {}
    for row in (name for name, row in comparison.rows.items() if row.table == table):
        for seed in comparison.seeds:
            recipe = plan.recipe(row, seed)
            if judged := versions_of(recipe, comparison.evaluation):
                folder = folder_of(recipe)
                stored.require(folder, {"versions": judged}, tasks)
                stored.require_finite(folder, {"versions": judged}, DIVERGED)
                steps = history.read(folder / history.FILE)
                runs.setdefault(row, []).append(Run(row, seed, folder, {0: base} | judged, steps))
    used = {row: _trained_on(plan.recipe(row, comparison.seeds[0])) for row in runs}
    units = {f"quality/{name}": unit for name, unit in untrained.get("units", {}).items()}
    return Results(comparison, base, runs, used, units, untrained.get("strengths", ()))


def strangers(plan: Plan) -> list[str]:
    """A line for the runs that have results which `read` leaves out."""
    comparison = plan.comparison
    recipes_of = [plan.recipe(row, seed) for seed in comparison.seeds for row in comparison.rows]
    names = [
        recipe.run.name
        for recipe in recipes_of
        if stored.result(folder_of(recipe)) and not versions_of(recipe, comparison.evaluation)
    ]
    if not names:
        return []
    return [
        f"{len(names)} runs in {comparison.runs} were trained or judged in another way and are "
        f"left out: {', '.join(names)}"
    ]


def versions_of(recipe: Recipe, protocol: Protocol) -> dict[int, Mapping[str, float]]:
    """The numbers of a run's checkpoints up to `run.steps`, by version; empty where it has none
    that were made under this recipe and judged under this protocol."""
    folder = folder_of(recipe)
    versions = made_under(protocol, folder)
    if not (versions and is_same(recipe)):
        return {}
    return {version: of for version, of in versions.items() if version <= recipe.run.steps}


def is_base_judged(plan: Plan) -> bool:
    """Whether the model before training has been judged, and it is this plan's."""
    comparison = plan.comparison
    recipe = plan.recipe(next(iter(comparison.rows)), comparison.seeds[0])
    settings = {"pool": comparison.pool, **judged_by(recipe, comparison.evaluation)}
    return 0 in made_under(comparison.evaluation, comparison.runs / BASE, **settings)


def judged_by(recipe: Recipe, protocol: Protocol) -> dict[str, Any]:
    """What the numbers of the base model depend on beside the protocol: the model, without what is
    trained of it, and the scorers that judge."""
    trained = {"lora_rank", "lora_alpha", "lora_targets", "gradient_checkpointing", "compile"}
    names = dict.fromkeys((*protocol.judges, *protocol.encoders))
    free = {"weight", "normalize", "batch_size", "token_env", "timeout_s"}
    scorers = {n: recipe.scorers[n].model_dump(mode="json", exclude=free) for n in names}
    return {
        "model": recipe.model.model_dump(mode="json", exclude=trained),
        "scorers": scorers,
    }


def made_under(
    protocol: Protocol, folder: Path, **settings: Any
) -> Mapping[int, Mapping[str, float]]:
    """A folder's results by version; empty where it has none of this protocol and these settings.
    Raises Damaged where they lack a metric that the protocol asks for."""
    wanted = {"protocol": under(protocol), **settings}
    found = stored.result(folder)
    if not wanted.items() <= found.items():
        return {}
    names = [f"quality/{name}" for name in protocol.judges]
    names += [f"variance/{name}" for name in protocol.encoders]
    names += [f"vendi/{name}" for name in (*protocol.encoders, *SPACES)]
    stored.require(folder, found, names)
    return found["versions"]


def under(protocol: Protocol) -> dict[str, Any]:
    """A protocol as a result holds it: its prompts by what they say, too."""
    words = hashlib.sha256(locate_prompts(protocol.prompts).read_bytes()).hexdigest()
    return {**protocol.model_dump(mode="json"), "prompts_sha256": words}


def is_same(recipe: Recipe) -> bool:
    """Whether the run in the recipe's folder was made with this recipe."""
    before = stored.recipe(folder_of(recipe))
    return before is not None and not recipes.differences(before, recipe.model_dump(mode="json"))


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.run.folder) / recipe.run.name


def _trained_on(recipe: Recipe) -> frozenset[str]:
    reward = {name for name, scorer in recipe.scorers.items() if scorer.weight}
    spaces = (*recipe.of_method("spaces"), *recipe.of_method("image_spaces"))
    return frozenset({*reward, *spaces})
