"""Recipes in and out of YAML: defaults < `base` file < file < overrides of the command line.

A recipe file holds only what differs from the defaults. Its one key that is not a section is
`base: FILE`, a recipe beside it that it differs from instead; a base has no base of its own.
`null` under `scorers` takes a scorer out. Relative paths in a file are relative to its folder,
those of the command line to the working directory.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from percent_ray.recipe import strict_yaml
from percent_ray.recipe.errors import explain, generic, known_keys, short
from percent_ray.recipe.tree import Recipe

Tree = dict[str, Any]

FREE = (
    "run.name",
    "run.folder",
    "run.steps",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "model.gradient_checkpointing",
    "model.compile",
    "scorers.NAME.batch_size",
    "scorers.NAME.token_env",
    "scorers.NAME.timeout_s",
    "sampling.batch_size",
    "perceptual.batch_size",
    "learner.micro_batch",
    "data.probe_prompts",
    "monitor",
    "runtime",
)
"""Keys (and sections) that a resumed run may change: they alter no number that is learned from, but
for rounding and the age of the groups. The engine itself refuses another backend, ZeRO stage or
number of learners."""
STEERING = (
    "data.probe_prompts",
    "monitor.probe_every",
    "monitor.probe_groups",
)
"""Those of them that are not free under `method.strength: auto`, which measures on probes."""


PATHS = (
    "data.prompts",
    "data.probe_prompts",
    "model.path",
    "perceptual.tiny_path",
    "scorers.NAME.path",
    "scorers.NAME.color_path",
)
"""Keys that a resumed run may change as far as the place has moved (`moved`)."""

MOST_DOTS = 8
"""In a key of the command line."""


class RecipeError(ValueError):
    """What is wrong with a recipe; each problem is one line that says what to set."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load(
    path: str | Path | None, overrides: Sequence[str] = (), *, layers: Sequence[Tree] = ()
) -> Recipe:
    """The recipe of a file (the defaults where None), of `layers` over it, and of
    `--section.key value` overrides, which come last.

    Raises RecipeError with every problem that was found.
    """
    problems: list[str] = []
    tree = defaults()
    for layer in [
        *([] if path is None else read(Path(path), problems)),
        *layers,
        _located(parse(overrides, problems), Path.cwd(), problems),
    ]:
        tree = merge(tree, _sections(layer, tree, problems))
    if texts := list(unreadable(tree)):
        raise RecipeError([*problems, *texts])
    if isinstance(tree["scorers"], dict):
        tree["scorers"] = {k: v for k, v in tree["scorers"].items() if v is not None}
    try:
        # JSON mode is strict and still reads a list as a tuple.
        recipe = Recipe.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise RecipeError([*problems, *explain(error)]) from None
    if problems:
        raise RecipeError(problems)
    return recipe


def defaults() -> Tree:
    """The default recipe as plain data, not validated: its files may not be there."""
    return Recipe.model_construct().model_dump(mode="json")


def dump(recipe: Recipe) -> str:
    """YAML of the whole tree; it loads back equal from any folder."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def differences(then: Tree, now: Tree) -> list[str]:
    """One line for every key in which two dumped recipes train differently (all but `FREE`)."""
    before, after = dict(flatten(then)), dict(flatten(now))
    steering = STEERING if after.get("method.strength") == "auto" else ()
    elsewhere = moved(then, now)
    return [
        f"{key} was {before.get(key, 'not there')}, is {after.get(key, 'not there')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and (key in steering or not within(generic(key), FREE))
        and key not in elsewhere
    ]


def moved(then: Tree, now: Tree) -> dict[str, str]:
    """Keys whose file or folder is gone from where it was and now is another of the same name:
    those of a repository that was moved, or of another machine. A line of each, by key."""
    after = dict(flatten(now))
    return {
        key: f"{key} was {before}, which is gone: taken to be what is now {after[key]}"
        for key, before in flatten(then)
        if generic(key) in PATHS
        and isinstance(before, str)
        and isinstance(after.get(key), str)
        and before != after[key]
        and Path(before).is_absolute()
        and Path(before).name == Path(after[key]).name
        and not Path(before).exists()
    }


def within(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names` or in a section of theirs."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `strict_yaml` would read as a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read(path: Path, problems: list[str], *, is_base: bool = False) -> list[Tree]:
    """The layers of a recipe file: its base's, where it has one, and its own. What is wrong with
    them is added to `problems`."""
    try:
        tree = strict_yaml.read(path)
    except ValueError as error:
        problems.append(str(error))
        return []
    if tree is None:
        return []
    if not isinstance(tree, dict):
        problems.append(f"{path}: holds {short(tree)}; needs sections such as `learner:`")
        return []
    base = tree.pop("base", None)
    layers: list[Tree] = []
    if base is not None and is_base:
        problems.append(f"{path}: a base cannot have a base; take the `base:` line out")
    elif base is not None and (not isinstance(base, str) or not base.strip()):
        problems.append(f"{path}: base: got {short(base)}, needs the name of a recipe's file")
    elif base is not None:
        layers = read(path.parent / base, problems, is_base=True)
    return [*layers, _located(tree, path.resolve().parent, problems)]


def parse(overrides: Sequence[str], problems: list[str]) -> Tree:
    """Tree of `--key value` and `--key=value`; values are YAML, but text where the key is text."""
    tree: Tree = {}
    waiting = list(overrides)
    while waiting:
        token = waiting.pop(0)
        if not token.startswith("--") or token == "--":
            problems.append(f"{token!r}: unexpected; overrides are --section.key value")
            continue
        key, equals, text = token.removeprefix("--").partition("=")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                problems.append(f"--{key}: has no value; give --{key} VALUE")
                continue
            text = waiting.pop(0)
        try:
            value = text if _is_text(key) else strict_yaml.load(text)
        except ValueError as error:
            problems.append(f"{key}: {short(text)} is {error}")
            continue
        if key.count(".") > MOST_DOTS:
            problems.append(f"{short(key)}: unknown; --help lists the keys")
            continue
        *sections, leaf = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                problems.append(f"{key}: {section} was given a value before; drop one of the two")
                break
        else:
            if isinstance(inner.get(leaf), dict):
                problems.append(f"{key}: was given a key of its own before; drop one of the two")
                continue
            inner[leaf] = value
    return tree


def _is_text(key: str) -> bool:
    """Whether a key's value is text, so that `--run.name 007` keeps its zeros."""
    field = known_keys().get(generic(key))
    return field is not None and field.annotation is str


def merge(tree: Tree, layer: Tree, *, removable: bool = False) -> Tree:
    """`layer` over `tree`, leaf by leaf. An empty section changes nothing, unless `removable`.
    Another method brings its own parameters: those of the one before go."""
    merged = dict(tree)
    method = _section(layer, "method").get("name")
    if method is not None and method != _section(tree, "method").get("name"):
        merged["method"] = {}
    for key, value in layer.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value, removable=key == "scorers")
        elif removable or value is not None or not isinstance(old, dict):
            merged[key] = value
    return merged


def _sections(layer: Tree, tree: Tree, problems: list[str], prefix: str = "") -> Tree:
    """`layer` without what is a value where `tree` has a section. That is a problem, and not for a
    later layer to cover up."""
    kept: Tree = {}
    for key, value in layer.items():
        name, inside = f"{prefix}{key}", tree.get(key)
        if isinstance(value, dict):
            kept[key] = _sections(value, _section(tree, key), problems, f"{name}.")
        elif value is not None and (isinstance(inside, dict) or prefix == "scorers."):
            problems.append(f"{name}: got {short(value)}, needs keys of its own; it is a section")
        else:
            kept[key] = value
    return kept


def unreadable(tree: Tree) -> Iterator[str]:
    """Texts that no file, terminal or server takes."""
    for key, value in flatten(tree):
        for text in (*(value if isinstance(value, list) else [value]), key):
            if isinstance(text, str) and _CONTROL.search(text):
                where = short(key) if _CONTROL.search(key) else key
                yield f"{where}: {short(text)} has characters that are no text; take them out"


_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def _located(tree: Tree, folder: Path, problems: list[str]) -> Tree:
    """A layer with its relative paths made absolute, in place."""
    scorers = _section(tree, "scorers")
    for name, section, keys in [
        ("", tree, ("prompts",)),  # of an evaluation's file
        ("data.", _section(tree, "data"), ("prompts", "probe_prompts")),
        ("model.", _section(tree, "model"), ("path",)),
        ("perceptual.", _section(tree, "perceptual"), ("tiny_path",)),
        *((f"scorers.{k}.", _section(scorers, k), ("path", "color_path")) for k in scorers),
    ]:
        for key in keys:
            path = section.get(key)
            if not isinstance(path, str) or not path or "://" in path:
                continue
            try:
                absolute = _absolute(path, folder)
                there = Path(absolute).exists()
            # No such user of ~user, a name that is too long, a link that leads to itself.
            except (OSError, RuntimeError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                problems.append(f"{name}{key}: {short(path)} is no path: {why}")
                del section[key]
                continue
            # `owner/name` is a hub id unless something of that name is there.
            if key in ("prompts", "probe_prompts") or path.startswith(".") or there:
                section[key] = absolute
    return tree


def _section(tree: Tree, name: str) -> Tree:
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


def _absolute(path: str, folder: Path) -> str:
    return path if path.startswith("shapes/") else str((folder / Path(path).expanduser()).resolve())
