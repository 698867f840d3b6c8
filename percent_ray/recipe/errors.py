"""A recipe's keys for people: every key with its docstring, and pydantic's complaints as one line
each that says what to set."""

import difflib
import functools
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from percent_ray.recipe import secret
from percent_ray.recipe.section import METHODS, Section
from percent_ray.recipe.tree import Recipe

NEEDS = {
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text; put it in quotes",
    "tuple_type": "a list such as [a, b]",
    "dict_type": "keys of its own; it is a section",
    "model_type": "keys of its own; it is a section",
    "literal_error": "one of {expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "letters, digits, '_', '.' and '-' only, the first no '.' or '-'",
    "string_too_short": "a text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "too_long": "at most {max_length} values",
    "too_small": "0, which is off, or at least {least}",
    "int_parsing_size": "a smaller number",
}
"""What a key needs, by pydantic's type of error."""


SHOWN = 80
"""Characters of a value, at most."""


@functools.cache
def known_keys() -> dict[str, FieldInfo]:
    """Every dotted key of the recipe; a scorer's keys are under scorers.NAME, and under method are
    the parameters of all methods."""
    keys = dict(_walk(Recipe, ""))
    for method in METHODS:
        keys |= {f"method.{name}": field for name, field in parameters(method).items()}
    return keys


@functools.cache
def parameters(method: str) -> dict[str, FieldInfo]:
    """The keys of a method, its name among them, with their docstrings as descriptions."""
    kind = METHODS[method]
    # A class's docstrings are its own: those of inherited fields are at its base.
    classes = [_schema()["$defs"].get(c.__name__, {}).get("properties", {}) for c in kind.__mro__]
    fields: dict[str, FieldInfo] = {}
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        field = FieldInfo.from_annotated_attribute(annotation, getattr(kind, name))
        abouts = (keys.get(name, {}).get("description") for keys in classes)
        field.description = next(filter(None, abouts), f"The method {method}.")
        fields[name] = field
    return fields


@functools.cache
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def short(value: object) -> str:
    """A value as it is written, cut in the middle of a line."""
    text = repr(secret.public(value) if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]} ... {text[-15:]}"


def generic(key: str) -> str:
    """`key` as it is spelt in `known_keys`."""
    return re.sub(r"^scorers\.[^.]+\.", "scorers.NAME.", key)


def explain(error: ValidationError) -> Iterator[str]:
    """One line for every problem of a recipe. Of a key that takes several types, pydantic says what
    each of them needs: here that is one line, too, and of a list only what its values need."""
    lines: dict[str, list[str]] = {}
    for line in _explain(error):
        problem, needs, need = line.partition(", needs ")
        lines.setdefault(problem, []).extend([need] if needs else [])
    keys = {problem.partition(":")[0] for problem in lines}
    for problem, needs in lines.items():
        if any(key.startswith(f"{problem.partition(':')[0]}.") for key in keys):
            continue
        yield f"{problem}, needs {' or '.join(dict.fromkeys(needs))}" if needs else problem


_TYPE = re.compile(r"constrained-\w+|literal\[.*\]|tuple\[.*\]")
"""How pydantic names a type of several in the place of a problem."""


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        kind, context = problem["type"], problem.get("ctx", {})
        # pydantic names the method in a key of its section, and the type in one of several.
        parts = [str(part) for part in problem["loc"] if not _TYPE.fullmatch(str(part))]
        inside = len(parts) > 1 and parts[0] == "method" and parts[1] in METHODS
        key = ".".join([parts[0], parts[2]] if inside else parts)
        if kind == "value_error":
            yield from str(context["error"]).splitlines()
        elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
            yield _unknown(key, method=parts[1] if inside else None)
        elif kind == "missing":
            yield f"{key}: missing; the list needs more values"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            yield f"method.name: unknown {context.get('tag')!r}; known are {', '.join(METHODS)}"
        elif kind in NEEDS:
            yield f"{key}: got {short(problem['input'])}, needs {NEEDS[kind].format(**context)}"
        else:
            yield f"{key}: got {short(problem['input'])}; {problem['msg'].lower()}"


def _walk(model: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if name == "method":
            continue
        if get_origin(annotation) is dict:
            yield from _walk(get_args(annotation)[1], f"{prefix}{name}.NAME.")
        elif isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _walk(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _unknown(key: str, *, method: str | None) -> str:
    """An unknown key and the known one that was likely meant: the same word in another section, or
    the most similar."""
    if method is not None:
        known = [name for name in parameters(method) if name != "name"]
        return f"{key}: {method} has no such parameter; it has {', '.join(known) or 'none'}"
    asked = generic(key)
    leaf = asked.rpartition(".")[2]
    keys = list(known_keys())
    sections = {k.rpartition(".")[0] for k in keys} | set(Recipe.model_fields)
    same = [k for k in keys if k.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(asked, same, 1, cutoff=0) or difflib.get_close_matches(
        asked, [*keys, *sorted(sections)], 1
    )
    if not close:
        return f"{key}: unknown; --help lists the keys"
    name = key.split(".")[1] if asked.startswith("scorers.NAME.") else "NAME"
    return f"{key}: unknown; did you mean {close[0].replace('NAME', name)}?"


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; of those whose words may be a mere key, the type too."""
    first, *rest = [*str(error).strip().splitlines(), ""][:2]
    # Such as "Validation error for field 'x':".
    line = f"{first} {''.join(rest).strip()}".strip() if first.endswith(":") else first
    if line and isinstance(error, ValueError | OSError):
        return line
    return f"{type(error).__name__}: {line}".removesuffix(": ")
