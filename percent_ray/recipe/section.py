"""What every section of a recipe is, and those that are methods."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field

from percent_ray.objective.methods.base import Method
from percent_ray.recipe import discover


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def _class(name: str) -> type[Any]:
    """The dataclass of the method's module that carries its name."""
    module = discover.METHODS.module(name, key="method.name")
    return next(c for c in vars(module).values() if getattr(c, "name", None) == name)


METHODS = {name: _class(name) for name in discover.METHODS.names()}
"""Every method's dataclass by its name."""

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007
