"""The one rule by which a model family, a scorer and a method are found: a module of the folder
that has the folder's entry at the start of a line. Files are read as text, so that looking for a
name imports nothing."""

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Room:
    """A folder of modules that a recipe chooses from by name."""

    folder: str
    """In the package."""
    entry: str
    """How a line of each of these modules begins, and of no other module of the folder."""

    def names(self) -> list[str]:
        """Of every module that can be chosen."""
        return _names(self)

    def module(self, name: str, *, key: str) -> ModuleType:
        """Imported. Raises ValueError that lists the known names; `key` is the recipe's."""
        if problem := self.unknown(name, key=key):
            raise ValueError(problem)
        return importlib.import_module(f"percent_ray.{self.folder.replace('/', '.')}.{name}")

    def has(self, name: str, line: str) -> bool:
        """Whether a module has this line."""
        return line in _lines(self.folder, name)

    def parameters(self, name: str) -> frozenset[str]:
        """Names that a module's entry takes, where that is a function."""
        return _parameters(self, name)

    def unknown(self, name: str, *, key: str) -> str | None:
        """What is wrong with a name, in one line."""
        if name in self.names():
            return None
        return f"{key}: unknown {name!r}; known are {', '.join(self.names())}"


@functools.cache
def _names(room: Room) -> list[str]:
    return sorted(
        path.stem
        for path in (PACKAGE / room.folder).glob("*.py")
        if f"\n{room.entry}" in path.read_text(encoding="utf-8")
    )


@functools.cache
def _parameters(room: Room, name: str) -> frozenset[str]:
    text = (PACKAGE / room.folder / f"{name}.py").read_text(encoding="utf-8")
    entry = room.entry.removeprefix("def ").removesuffix("(")
    return frozenset(
        argument.arg
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == entry
        for argument in (*node.args.args, *node.args.kwonlyargs)
    )


@functools.cache
def _lines(folder: str, name: str) -> frozenset[str]:
    path = PACKAGE / folder / f"{name}.py"
    return frozenset(path.read_text(encoding="utf-8").splitlines())


FAMILIES = Room("models", "def load_policy(")
SCORERS = Room("scorers", "def load(")
METHODS = Room("objective/methods", "    name: Literal[")
