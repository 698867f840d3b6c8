"""YAML that means what it looks like, and that no file can make slow or deep.

Numbers are decimal: `1:30` and `010`, which YAML 1.1 reads as 90 and 8, are text, as dates are, so
that the key that wants a number complains. A key is text and is given once. There are no tags.
"""

import re
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 256 * 1024
"""Of a file; a run's whole recipe has 4 kB."""
MOST_LEVELS = 32
MOST_VALUES = 10_000
"""In all, those of an alias counted each time that it is used."""
MOST_DIGITS = 40
"""Of a whole number."""

WORDS = {
    "int": (r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    "float": (
        r"[-+]?((0|[1-9]\d*)?\.\d+|(0|[1-9]\d*)\.?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.nan|\.NaN",
        "-+.0123456789",
    ),
    "bool": (r"yes|Yes|no|No|true|True|TRUE|false|False|FALSE|on|On|off|Off", "yYnNtTfFoO"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": ("<<", "<"),
}
"""What a word that is not in quotes is read as, with its first letters; text where nothing fits."""


def load(text: str) -> Any:
    """The value of a YAML text. Raises ValueError in one line that says where."""
    try:
        return yaml.load(text, Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"not YAML: line {line}: character {error.character:#06x}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"not YAML: {where}{getattr(error, 'problem', error)}") from None


def read(path: Path) -> Any:
    """The value of a YAML file. Raises ValueError in one line, with the file and where."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: is no file; give a file of YAML")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"{path}: has {path.stat().st_size:,} bytes, a recipe has at most {MOST_BYTES:,}; "
                "is it another file?"
            )
        data = path.read_bytes()
        return load(data.decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line}: byte {error.object[error.start]:#04x} is not UTF-8; save the "
            "file as UTF-8"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


class Loader(yaml.SafeLoader):
    """Raises yaml.YAMLError for what a recipe cannot hold, at its line."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 PyYAML's own is one; filled below

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._levels = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if getattr(event, "tag", None):
            raise _error(f"tag {event.tag} is not known; write the value alone", event.start_mark)
        self._values += 1
        if self._values > MOST_VALUES:
            raise _error(f"more than {MOST_VALUES} values", event.start_mark)
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise _error(f"more than {MOST_LEVELS} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag.endswith(":merge"):
                continue
            if not key_node.tag.endswith(":str"):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "of several"
                raise _error(f"key {shown} is no text; put it in quotes", key_node.start_mark)
            if key_node.value in seen:
                raise _error(f"key {key_node.value!r} is given twice", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            raise _error(f"a number of {len(node.value)} digits", node.start_mark)
        return int(node.value)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
for _name, (_pattern, _letters) in WORDS.items():
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"({_pattern})\Z"), list(_letters)
    )


def _count(root: yaml.Node) -> None:
    """Raises for a node that holds itself, and for too many values behind aliases."""
    count, inside = 0, set[int]()
    waiting: list[tuple[yaml.Node, bool]] = [(root, True)]
    while waiting:
        node, enters = waiting.pop()
        if not enters:
            inside.remove(id(node))
            continue
        if id(node) in inside:
            raise _error("an anchor holds itself", node.start_mark)
        count += 1
        if count > MOST_VALUES:
            raise _error(f"more than {MOST_VALUES} values, counted by aliases", node.start_mark)
        if isinstance(node, yaml.CollectionNode):
            inside.add(id(node))
            waiting.append((node, False))
            for child in node.value:
                parts = child if isinstance(child, tuple) else (child,)
                waiting += [(part, True) for part in parts]


def _error(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
