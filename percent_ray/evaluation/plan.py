"""What an evaluation does: its protocol, its judges, and the rows of its tables."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from percent_ray.evaluation import checkpoints, pipelines
from percent_ray.evaluation.checkpoints import Checkpoint, CheckpointRow
from percent_ray.evaluation.judge import Protocol
from percent_ray.evaluation.pipelines import PipelineRow
from percent_ray.evaluation.quality import Asked
from percent_ray.evaluation.store import stamps
from percent_ray.recipe import bounds, check, scorers, tree
from percent_ray.recipe import load as recipes
from percent_ray.recipe.errors import explain, first_line, short
from percent_ray.recipe.load import RecipeError
from percent_ray.recipe.paths import expanded
from percent_ray.recipe.secret import Uri
from percent_ray.recipe.section import Section
from percent_ray.types import Prompt

LONGEST = 120
"""Characters of a row's label, which heads lines of tables and pages."""


class Workers(Section):
    """Actors that do one thing."""

    workers: bounds.Workers | None = None
    """Where not set: one; with GPUs one that draws for each of them, and one of a judge for every
    eight."""
    gpus: bounds.Amount | None = None
    """GPUs of one of them. Where not set: none; with GPUs those that draw have half of one each,
    and the judges share the other half of one."""


class Evaluation(Protocol):
    """A file of `jobs/evaluate.py`, beside its `rows`."""

    folder: bounds.Text = "runs/evaluation"
    """Where everything is written."""
    against: str = ""
    """Label of the row that the others are tested against; the first one where empty."""
    scorers: dict[str, tree.Scorer] = {}  # noqa: RUF012 pydantic copies it
    """By name, as in a recipe: those that `judges` and `encoders` name."""
    draw: Workers = Workers()
    """The actors that draw pictures."""
    judge: dict[str, Workers] = {}  # noqa: RUF012
    """By scorer, the actors of each judge; `default` is of those that are not named."""
    timeout_s: bounds.Seconds = 3600.0
    """Longest wait for one prompt's pictures, and for one judge's word on them."""
    tracking_uri: Uri = ""
    """MLflow's server; mlflow.db beside the folder where empty."""
    keep: bool = False
    """Keep every picture as a PNG file; a judge that is added later then draws none again."""

    @property
    def home(self) -> Path:
        """The folder."""
        return expanded(self.folder)

    @field_validator("folder")
    @classmethod
    def _is_a_path(cls, folder: str) -> str:
        try:
            expanded(folder)
        except ValueError as error:
            raise ValueError(f"folder: {error}") from None
        return folder


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tables."""

    label: str
    name: str
    """Of its folder: the label in letters, digits, '.' and '-'."""
    of: Checkpoint | PipelineRow

    @property
    def about(self) -> str:
        """What it is, in a line."""
        if isinstance(self.of, Checkpoint):
            return f"{self.of.name} of {self.of.model.path}"
        return f"{self.of.pipeline}{f' with {self.of.lora}' if self.of.lora else ''}"

    def identity(self) -> dict[str, Any]:
        """What its pictures depend on, as JSON."""
        if isinstance(self.of, Checkpoint):
            return self.of.identity()
        row = self.of.model_dump(mode="json")
        places = {name: row[name] for name in ("pipeline", "lora")} | row["components"]
        return {**row, "files": {name: stamps(path) for name, path in places.items()}}


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation, its rows and its prompts."""

    evaluation: Evaluation
    rows: tuple[Row, ...]
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    """What was guessed or left out, a line each."""

    @property
    def scorers(self) -> dict[str, tree.Scorer]:
        """Those that are asked, in the order of the judges."""
        names = dict.fromkeys((*self.evaluation.judges, *self.evaluation.encoders))
        return {name: self.evaluation.scorers[name] for name in names}

    @property
    def asked(self) -> dict[str, Asked]:
        """What each of them is asked."""
        judges, encoders = self.evaluation.judges, self.evaluation.encoders
        return {name: Asked(name in judges, name in encoders) for name in self.scorers}


def load(path: Path, runs: Sequence[str] = (), *, newest: bool = False, **settings: Any) -> Plan:
    """The plan of a file. `runs` are rows (RUN, RUN@STEP or RUN@all) in the place of the file's,
    after the model that each of them began with; with `newest` they are all checkpoints of the
    newest run in runs/, where there is one. `settings` replace keys of the file (those that are
    None do not). Raises RecipeError with one line for each problem.
    """
    problems: list[str] = []
    contents: recipes.Tree = {}
    asked: Any = []
    for layer in recipes.read(path, problems):
        asked = layer.pop("rows", [])  # a base gives its judges and its protocol alone
        contents = recipes.merge(contents, layer)
    if problems:
        raise RecipeError(problems)
    contents |= {key: value for key, value in settings.items() if value is not None}
    problems += recipes.unreadable(contents)
    if problems:
        raise RecipeError([f"{path}: {problem}" for problem in problems])
    try:
        evaluation = Evaluation.model_validate_json(json.dumps(contents, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError([f"{path}: {line}" for line in explain(error)]) from None
    if not evaluation.scorers:
        raise RecipeError([f"{path}: no scorers; `base: FILE` takes those of another file"])
    wrong = [*scorers.problems(evaluation.scorers), *_workers(evaluation)]
    wrong = wrong or list(evaluation.problems(evaluation.scorers))
    if wrong:
        raise RecipeError([f"{path}: {problem}" for problem in wrong])
    if not evaluation.judges and not evaluation.encoders:
        raise RecipeError([f"{path}: no judges and no encoders; there is nothing to measure"])
    notes: list[str] = []
    runs = runs or (_newest(notes) if newest else ())
    if runs:
        asked = [{"run": run} for text in runs for run in checkpoints.expand(text)]
    if not asked:
        raise RecipeError([f"{path}: no rows; give some there, or RUN on the command line"])
    rows = _rows(asked, evaluation, path.parent, with_bases=bool(runs))
    if evaluation.against and evaluation.against not in {row.label for row in rows}:
        labels = ", ".join(row.label for row in rows)
        raise RecipeError([f"against: no row {evaluation.against!r}; there are {labels}"])
    prompts = evaluation.read(evaluation.scorers)
    notes += _strangers(rows, evaluation)
    return Plan(evaluation, tuple(rows), tuple(prompts), tuple(notes))


TAKEN = ("draw", "reading", "default")
"""Names of actors that are no judges, and of what `judge` says of all of them."""


def _workers(evaluation: Evaluation) -> list[str]:
    """Scorers that are called as other actors are, keys of `judge` that no actor would be sized by,
    and parts of cards that are none."""
    known = ("default", *evaluation.scorers)
    taken = [
        f"scorers: {name!r} is the name of other actors; give it another with kind: {name}"
        for name in TAKEN
        if name in evaluation.scorers
    ]
    asked = {"draw": evaluation.draw, **{f"judge.{n}": w for n, w in evaluation.judge.items()}}
    parts = [p for key, of in asked.items() for p in check.cards(f"{key}.gpus", of.gpus or 0)]
    return (
        taken
        + parts
        + [
            f"judge.{name}: no such scorer; there are {', '.join(known)}"
            for name in evaluation.judge
            if name not in known
        ]
    )


def _newest(notes: list[str]) -> list[str]:
    """All checkpoints of the run that has written one last."""
    folder = Path(recipes.defaults()["run"]["folder"])
    newest = checkpoints.newest(folder)
    if newest is None:
        notes.append(f"no run in {folder}: only the file's rows are judged; `make train` makes one")
        return []
    notes.append(f"rows: the newest run in {folder}, {newest.name}, and the model it began with")
    return [f"{newest}@{checkpoints.ALL}"]


def _rows(asked: Any, evaluation: Evaluation, folder: Path, *, with_bases: bool) -> list[Row]:
    if not isinstance(asked, list):
        raise RecipeError([f"rows: got {asked!r}, needs a list of rows"])
    problems: list[str] = []
    found: list[tuple[str, Checkpoint | PipelineRow]] = []
    for number, row in enumerate(asked):
        label = ""
        try:
            label = _label(row)
            of = _read(row, evaluation.steps, folder)
            if with_bases and isinstance(of, Checkpoint) and of.policy is not None:
                base = _read({"run": f"{row['run'].partition('@')[0]}@0"}, evaluation.steps, folder)
                known = [o.identity() for _, o in found if isinstance(o, Checkpoint)]
                if base.identity() not in known:
                    found.append(("", base))
            found.append((label, of))
        except RecipeError as error:
            problems += [f"rows[{number}] {label}: {problem}" for problem in error.problems]
        except (OSError, ValueError) as error:
            problems.append(f"rows[{number}] {label}: {first_line(error)}")
    if problems:
        raise RecipeError(problems)
    return _named(found)


def _label(row: Any) -> str:
    """A row's own one, empty where it has none."""
    if not isinstance(row, dict):
        raise ValueError(f"got {short(row)}, needs keys such as label and pipeline")
    if "label" not in row:
        return ""
    label = row["label"]
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label: got {short(label)}, needs a text that is not empty, in quotes")
    if len(label) > LONGEST:
        raise ValueError(f"label: has {len(label)} characters; give at most {LONGEST}")
    if unreadable := list(recipes.unreadable({"label": label})):
        raise ValueError(unreadable[0])
    return label


def _read(row: Any, steps: int, folder: Path) -> Any:
    """A row's checkpoint or pipeline. Paths of a file are relative to its folder."""
    fields = {key: value for key, value in row.items() if key != "label"}
    texts = {key: value for key, value in fields.items() if key != "arguments"}
    if unreadable := list(recipes.unreadable(texts)):
        raise RecipeError(unreadable)
    kind = CheckpointRow if {"run", "recipe"} & fields.keys() else PipelineRow
    for key in ("recipe", "pipeline", "lora", "run"):
        if isinstance(path := fields.get(key), str) and path:
            beside = (folder / expanded(path.partition("@")[0])).absolute()
            if not Path(path.partition("@")[0]).exists() and beside.exists():
                fields[key] = f"{beside}{''.join(path.partition('@')[1:])}"
    try:
        read = kind.model_validate_json(json.dumps(fields, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError(list(_explained(error, kind))) from None
    if isinstance(read, CheckpointRow):
        return checkpoints.resolve(read, steps=steps)
    pipelines.find(read)
    return read


def _explained(error: ValidationError, kind: type[Section]) -> list[str]:
    """As `explain`, whose likely meanings are a recipe's keys and not a row's."""
    known = f"; a row has {', '.join(kind.model_fields)}"
    own = re.compile(r"^([^.:]*: (?:unknown|missing));.*")
    return [own.sub(rf"\g<1>{known}", line) for line in explain(error)]


def _named(found: Sequence[tuple[str, Checkpoint | PipelineRow]]) -> list[Row]:
    rows: list[Row] = []
    for label, of in found:
        own = of.name if isinstance(of, Checkpoint) else Path(of.pipeline).name
        label = label or own
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", label).strip("._") or "row"
        if label in {row.label for row in rows} or name in {row.name for row in rows}:
            raise RecipeError([f"rows: two rows are called {label!r}; give them other labels"])
        rows.append(Row(label, name, of))
    return rows


def _strangers(rows: Sequence[Row], evaluation: Evaluation) -> list[str]:
    """Whether the embedded world's judges are asked about pictures of another."""
    embedded = [n for n, s in evaluation.scorers.items() if s.path.startswith("shapes/")]
    strange = [
        row.label
        for row in rows
        if not (isinstance(row.of, Checkpoint) and row.of.model.path.startswith("shapes/"))
        and not (isinstance(row.of, PipelineRow) and row.of.pipeline.startswith("shapes/"))
    ]
    if not embedded or not strange:
        return []
    return [
        f"{', '.join(embedded)} are the embedded world's and know nothing of the pictures of "
        f"{', '.join(strange)}; for published models use --rows jobs/recipes/evaluate_paper.yaml"
    ]
