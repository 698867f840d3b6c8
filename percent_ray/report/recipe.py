"""The recipe of a run, as far as a report reads it."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from percent_ray.recipe import strict_yaml
from percent_ray.recipe.errors import NEEDS, short

Tree = Mapping[str, Any]


def read(path: Path) -> Tree:
    """A run's recipe, not validated: its models may be on another machine, and its keys of an
    earlier version. Raises ValueError, with the file and the key, for what a report could not
    use."""
    tree = strict_yaml.read(path)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} is no recipe; it has {short(tree)}")
    for problem in _problems(tree):
        raise ValueError(f"{path}: {problem}; set what the run was trained with")
    return tree


def value_of(tree: Tree, name: str, default: Any = None) -> Any:
    """A dotted key; the default where it is not there, or null."""
    value: Any = tree
    for part in name.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            return default
        value = value[part]
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


COUNT = (_is_count, "a whole number, 0 or more")
WEIGHT = (_is_weight, "a finite number, 0 or more")
TEXT = (_is_text, NEEDS["string_type"])
TEXTS = (_is_texts, NEEDS["tuple_type"])

READ: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "run.steps": COUNT,
    "run.seed": COUNT,
    "model.path": TEXT,
    "method.name": TEXT,
    "method.spaces": TEXTS,
    "sampling.group_size": COUNT,
    "learner.process": TEXT,
    "data.prompts": TEXT,
    "data.probe_prompts": TEXT,
    "perceptual.spaces": TEXTS,
    "monitor.spaces": TEXTS,
    "monitor.probe_every": COUNT,
    "monitor.probe_groups": COUNT,
}
"""Keys that a report reads, beside the weights of the scorers, and what they need."""


def _problems(tree: Tree) -> Iterator[str]:
    for name in dict.fromkeys((*(key.partition(".")[0] for key in READ), "scorers")):
        if (value := tree.get(name)) is not None and not isinstance(value, Mapping):
            yield f"{name}: got {short(value)}, needs {NEEDS['dict_type']}"
    wanted = {name: (value_of(tree, name), *READ[name]) for name in READ}
    for name, scorer in (value_of(tree, "scorers") or {}).items():
        if scorer is not None and not isinstance(scorer, Mapping):
            yield f"scorers.{name}: got {short(scorer)}, needs {NEEDS['dict_type']}"
        wanted[f"scorers.{name}.weight"] = ((scorer or {}).get("weight"), *WEIGHT)
    for name, (value, fits, need) in wanted.items():
        if value is not None and not fits(value):
            yield f"{name}: got {short(value)}, needs {need}"
