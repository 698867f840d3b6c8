"""What a comparison runs: rows of a table, each a method on the same recipe, over seeds."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from percent_ray.evaluation.aggregate import FRONTIER_POINTS
from percent_ray.evaluation.judge import Protocol
from percent_ray.recipe import bounds, check, strict_yaml
from percent_ray.recipe import load as recipes
from percent_ray.recipe.errors import explain, short
from percent_ray.recipe.load import RecipeError
from percent_ray.recipe.paths import expanded
from percent_ray.recipe.section import Section
from percent_ray.recipe.tree import Monitor, Recipe

BASE = "base"
"""Names the model before training: a folder beside the runs', a line of the tables."""

RowName = Annotated[bounds.Name, Field(max_length=80)]
"""With a seed it is the name of a run."""
LEAST_GPU = 1e-4
"""Ray's smallest part of a card."""
RunSeed = Annotated[int, Field(ge=0, lt=2**63)]
OWN = {
    "seed": "give --seeds",
    "name": "it is ROW-SEED; give the row another name",
    "folder": "give --folder",
}
"""Keys under `run` that a comparison sets for each of its runs, and what is to be done instead."""
Kind = Literal["reference", "baseline", "paper", "ours", "control"]
"""`reference` rows are the early-stopping frontier: the same method, stopped anywhere."""


class Row(Section):
    """One line of a table."""

    label: str
    """As the table has it."""
    kind: Kind = "paper"
    table: Literal["1", "s1"] = "1"
    """Table 1 and the frontier, or GenEval's tasks (the paper's table S1)."""
    base: str = ""
    """Recipe file in the place of the comparison's `base`, in the same folder."""
    recipe: dict[str, Any] = {}  # noqa: RUF012 pydantic copies it
    """What differs from the comparison's recipe."""


class Comparison(Section):
    name: bounds.Name
    """Names its folder and its MLflow run."""
    folder: bounds.Text = "runs"
    """Everything is written to FOLDER/NAME."""
    seeds: Annotated[tuple[RunSeed, ...], Field(min_length=1)] = (1, 2, 3)
    """Of the runs of each row, each once."""
    workers: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Runs at a time, one core each."""
    gpus: Annotated[float, Field(ge=0, le=1024)] = 0.0
    """GPUs of one run: a part of one, which shares the card, or whole ones; 0 is the CPU."""
    evaluation: Protocol = Protocol()
    """How checkpoints are judged."""
    pool: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Pictures of a prompt that the base model draws to be chosen from: what reward costs without
    training. 0 leaves it out; ten times `evaluation.images` or more is needed."""
    recipe: dict[str, Any] = {}  # noqa: RUF012 pydantic copies it
    """What all rows differ in from the base recipe."""
    rows: dict[RowName, Row]
    """By a short name."""
    quick: tuple[str, ...] = ()
    """Rows of `--quick`, with one seed."""

    @model_validator(mode="after")
    def _pool_is_larger(self) -> Self:
        if 0 < self.pool < self.evaluation.images:
            raise ValueError(
                f"pool {self.pool} has fewer pictures than evaluation.images "
                f"{self.evaluation.images}; set it to ten times as many, or to 0"
            )
        return self

    @model_validator(mode="after")
    def _cards_can_be_given(self) -> Self:
        if 0 < self.gpus < LEAST_GPU:
            raise ValueError(
                f"gpus {self.gpus:g}: is no part of a card; set it to {LEAST_GPU:g} or more, or to "
                "0, which is the CPU"
            )
        for problem in check.cards("gpus", self.gpus):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _folder_is_a_place(self) -> Self:
        try:
            _ = self.home
        except ValueError:
            raise ValueError(
                f"folder {short(self.folder)}: there is no such user; write the path without ~"
            ) from None
        return self

    @model_validator(mode="after")
    def _folders_are_apart(self) -> Self:
        """A run's folder is called by its row and its seed."""
        if twice := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ValueError(f"seeds: {', '.join(map(str, twice))} is there twice; give each once")
        if BASE in self.rows:
            raise ValueError(
                f"rows.{BASE}: is the model before training; give the row another name"
            )
        return self

    @property
    def home(self) -> Path:
        """Absolute: a worker of Ray may have another working directory."""
        return expanded(self.folder).absolute() / self.name

    @property
    def runs(self) -> Path:
        """Where the runs' folders are, and that of `BASE`."""
        return self.home / "runs"


class Plan:
    """A comparison with its base recipe: which runs there are, and the recipe of each."""

    def __init__(self, comparison: Comparison, base: Path, overrides: Sequence[str]) -> None:
        self.comparison = comparison
        self._base = base
        self._overrides = overrides

    @property
    def monitor(self) -> Monitor:
        """Of the first row's runs: where their numbers go, a copy of the report goes, too."""
        return self.recipe(next(iter(self.comparison.rows)), self.comparison.seeds[0]).monitor

    def recipe(self, row: str, seed: int) -> Recipe:
        """The recipe of one run. Raises RecipeError that names the row."""
        chosen = self.comparison.rows[row]
        folder = str(self.comparison.runs)
        own = {"run": {"seed": seed, "name": f"{row}-{seed}", "folder": folder}}
        base = self._base.parent / chosen.base if chosen.base else self._base
        layers = (self.comparison.recipe, chosen.recipe, own)
        try:
            return recipes.load(base, self._overrides, layers=layers)
        except RecipeError as error:
            raise RecipeError([f"rows.{row}: {problem}" for problem in error.problems]) from None


def load(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    rows: Sequence[str] = (),
    quick: bool = False,
    **settings: Any,
) -> Plan:
    """The plan of a comparison's file. `overrides` are of every row's recipe, `rows` chooses some,
    `settings` replace keys of the comparison (those that are None do not).

    Every recipe is validated here, and that a report can be made of the rows. Raises RecipeError
    with one line for each problem.
    """
    comparison, base = _read(path, settings)
    if wrong := [*_own(comparison, path), *_own_overrides(overrides)]:
        raise RecipeError(wrong)
    unknown = [row for row in (*rows, *comparison.quick) if row not in comparison.rows]
    if unknown:
        raise RecipeError([f"no row {', '.join(unknown)}; {path} has {', '.join(comparison.rows)}"])
    chosen = rows or (comparison.quick if quick else ())
    if chosen:
        kept = {name: row for name, row in comparison.rows.items() if name in chosen}
        comparison = comparison.model_copy(update={"rows": kept})
    if quick:
        changes = {"seeds": comparison.seeds[:1], "name": f"{comparison.name}_quick"}
        comparison = comparison.model_copy(update=changes)
    plan = Plan(comparison, base, overrides)
    if not comparison.evaluation.judges:
        raise RecipeError([f"{path}: evaluation.judges: is empty; the first is the reward"])
    recipes_of = {row: plan.recipe(row, comparison.seeds[0]) for row in comparison.rows}
    wrong = [
        f"{path}: row {row}: {problem}"
        for row, recipe in recipes_of.items()
        for problem in comparison.evaluation.problems(recipe.scorers)
    ]
    if wrong:
        raise RecipeError(wrong)
    for recipe in recipes_of.values():
        comparison.evaluation.read(recipe.scorers)
    problem = _no_frontier(comparison, recipes_of)
    if problem:
        raise RecipeError([f"{path}: {problem}"])
    return plan


def _read(path: Path, settings: Mapping[str, Any]) -> tuple[Comparison, Path]:
    """A comparison and the file of its base recipe. Raises RecipeError."""
    try:
        tree = strict_yaml.read(path)
    except ValueError as error:
        raise RecipeError([str(error)]) from None
    if not isinstance(tree, dict):
        raise RecipeError([f"{path}: not a comparison: it holds no keys; see --help"])
    base = tree.pop("base", None)
    if not isinstance(base, str) or not base.strip():
        raise RecipeError([f"{path}: base: got {base!r}, needs a recipe file in the same folder"])
    tree |= {key: value for key, value in settings.items() if value is not None}
    try:
        # As JSON, so that a text is no number and 1.0 no whole one.
        comparison = Comparison.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise RecipeError([f"{path}: {line}" for line in explain(error)]) from None
    return comparison, path.parent / base


def _own(comparison: Comparison, path: Path) -> Iterator[str]:
    """A line for each key of `OWN` in a comparison's file, where it would change nothing."""
    layers = {"recipe": comparison.recipe}
    layers |= {f"rows.{name}.recipe": row.recipe for name, row in comparison.rows.items()}
    for where, layer in layers.items():
        for line in _set_by_itself(layer):
            yield f"{path}: {where}: {line}"


def _own_overrides(overrides: Sequence[str]) -> Iterator[str]:
    """The same for the command line, where it would make all runs one."""
    return _set_by_itself(recipes.parse(overrides, []))  # `recipes.load` tells what is no override


def _set_by_itself(layer: Mapping[str, Any]) -> Iterator[str]:
    run = layer.get("run")
    for key, instead in OWN.items():
        if isinstance(run, dict) and key in run:
            yield f"run.{key} is a run's own; {instead}"


def _no_frontier(comparison: Comparison, recipes_of: Mapping[str, Recipe]) -> str | None:
    """Why the report could not compare these rows with early stopping, if so."""
    references = [
        name for name, row in comparison.rows.items() if (row.kind, row.table) == ("reference", "1")
    ]
    if not references:
        return "none of the rows is a reference of table 1, which all are compared with; add one"
    judged = len(comparison.seeds) * sum(
        math.ceil(recipes_of[name].run.steps / recipes_of[name].run.checkpoint_every)
        for name in references
    )
    if judged < FRONTIER_POINTS:
        return (
            f"the rows of kind reference have {judged} checkpoints and a frontier needs "
            f"{FRONTIER_POINTS}; set run.checkpoint_every lower or run.steps higher"
        )
    return None
