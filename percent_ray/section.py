"""What every section of a recipe is, and those that are made out of the methods' functions."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

from percent_ray.objective import methods


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class Method(Section):
    """A method of objective/methods.py with its own parameters; `METHODS` has one section each."""

    name: str
    """Function of percent_ray/objective/methods.py."""

    def __call__(self, signals: methods.Signals) -> methods.Shaped:
        """What the method makes of a step (`methods.Signals`)."""
        function = getattr(methods, self.name)
        chosen = {key: getattr(self, key) for key in _parameters(function)}
        return function(signals, **chosen)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    every = inspect.signature(function).parameters
    return {k: p for k, p in every.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _method(function: Callable[..., Any]) -> type[Method]:
    """The recipe's section of a method: its keyword-only parameters, with their types, bounds,
    defaults and descriptions."""
    fields: dict[str, Any] = {"name": (Literal[function.__name__], function.__name__)}
    for key, parameter in _parameters(function).items():
        about = [m for m in get_args(parameter.annotation)[1:] if isinstance(m, str)]
        fields[key] = (
            parameter.annotation,
            Field(parameter.default, description=about[-1] if about else None),
        )
    return create_model(function.__name__, __base__=Method, __doc__=function.__doc__, **fields)


METHODS = {
    name: _method(function)
    for name, function in vars(methods).items()
    if inspect.isfunction(function)
    and function.__module__ == methods.__name__
    and not name.startswith("_")
}
"""By name; found, not registered."""

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007


def __getattr__(name: str) -> type[Method]:
    """A method's section by its name, which is how pickle finds its class."""
    if name in METHODS:
        return METHODS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
