"""A judge that was published as one PyTorch file of weights: found, read without running its code,
and put into a model under other names, whole or refused."""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from percent_ray.models import hub, weights
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.paths import Place, locate

AS_PUBLISHED = "give the file as it was published"
TAKES: tuple[Place, ...] = ("folder", "hub id", "weights file")

Model = TypeVar("Model", bound=nn.Module)

Source = tuple[str, Callable[[Tensor], Tensor]]
"""The published name that a weight is read from, and what is taken of the tensor there."""


def find(path: str, file: str, *, part: str) -> Path:
    """`path` itself where it is a file, else the `file` of the folder or hub id `path`.

    Raises ValueError, in one line, where it is not there.
    """
    place = locate(path, TAKES)
    if Path(place).is_file():
        return Path(place)
    try:
        found = hub.at_hand(place, "", _only(file)) / file
    except weights.Refused as error:
        raise ValueError(f"{part} of {place}: {error}, or to its file {file}") from None
    except Exception as error:
        why = first_line(error).rstrip(".")
        raise ValueError(f"{part} of {place}: {why}; give a folder with {file}") from error
    if not found.is_file():
        raise ValueError(f"{part} of {place}: has no {file}; give that file or a folder with it")
    return found


def beside(file: Path, names: Sequence[str], *, instead: str) -> str:
    """The folder of `file` where one of `names` is in it, else the hub id `instead`."""
    return str(file.parent) if any((file.parent / name).is_file() for name in names) else instead


def read(file: Path, *, part: str, key: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one that `torch.save` wrote or its entry `key`, on
    the CPU. Nothing but plain data is unpickled. Raises ValueError, in one line, for any other
    file."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:  # no fault of the file
        raise
    except UnpicklingError:
        raise ValueError(
            f"{part} of {file}: is no PyTorch file of plain weights; {AS_PUBLISHED}"
        ) from None
    except Exception as error:
        why = first_line(error).rstrip(".")
        raise ValueError(f"{part} of {file}: cannot be read ({why}); {AS_PUBLISHED}") from error
    if key and isinstance(found, dict):
        found = found.get(key)
    if not isinstance(found, dict) or not found or not all(_is_weight(x) for x in found.items()):
        what = f"no state dict under {key!r}" if key else "no state dict"
        raise ValueError(f"{part} of {file}: holds {what}; {AS_PUBLISHED}")
    return found


def fill(
    build: Callable[[], Model],
    state: Mapping[str, Tensor],
    source: Callable[[str], Source],
    *,
    where: str,
    unused: Sequence[str] = (),
) -> Model:
    """What `build` makes, in float32 and in evaluation mode, with each weight from its `source`.

    `where` names the file in errors; `unused` are beginnings of published names that nothing here
    reads. Raises ValueError, in one line, where a weight is missing, unexpected, not finite or of
    another shape.
    """
    with torch.device("meta"):
        model = build()
    empty = model.state_dict()
    sources = {name: source(name) for name in empty}
    published = {name for name, _ in sources.values()}
    taken = {name: take(state[old]) for name, (old, take) in sources.items() if old in state}
    problems = {
        "missing": published - state.keys(),
        "unexpected": {x for x in state.keys() - published if not x.startswith(tuple(unused))},
        "of another shape": {
            f"{sources[name][0]} read as {list(there.shape)}, needs {list(empty[name].shape)}"
            for name, there in taken.items()
            if there.shape != empty[name].shape
        },
        "of whole numbers": {
            sources[name][0] for name, there in taken.items() if not there.is_floating_point()
        },
        "NaN or infinite": {sources[name][0] for name in weights.not_finite(taken)},
    }
    wrong = [f"{len(x)} {what} ({weights.some(sorted(x))})" for what, x in problems.items() if x]
    if wrong:
        raise ValueError(
            f"{where} does not fit {type(model).__name__}: {'; '.join(wrong)}; {AS_PUBLISHED}"
        )
    model.load_state_dict({name: x.float().contiguous() for name, x in taken.items()}, assign=True)
    _count_positions(model)
    return model.requires_grad_(False).eval()


def linear_head(width: int, widths: Sequence[int], *, gaps: int) -> nn.Sequential:
    """Linear layers from `width` to each of `widths`. The first `gaps` are each followed by what
    was dropout in training and does nothing now, so that the layers have their published numbers.
    """
    layers: list[nn.Module] = []
    for number, (inside, out) in enumerate(pairwise((width, *widths))):
        layers.append(nn.Linear(inside, out))
        if number < gaps:
            layers.append(nn.Identity())
    return nn.Sequential(*layers)


def renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    """A weight's name with each of the pairs of `names` replaced, one after the other."""
    return functools.reduce(lambda done, pair: done.replace(*pair), names, name)


def whole(tensor: Tensor) -> Tensor:
    """All of a published tensor, as most weights are."""
    return tensor


def _is_weight(entry: tuple[object, object]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


@functools.cache  # the hub's answers are kept by this function
def _only(file: str) -> hub.Pick:
    def pick(names: Sequence[str]) -> list[str]:
        return [*weights.small(names), *(name for name in names if name == file)]

    return pick


def _count_positions(model: nn.Module) -> None:
    """Make the one buffer that these models compute, the numbers of the positions; a model that was
    built without memory has it without values."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            assert name == "position_ids", f"{type(module).__name__} computes {name}"
            module.register_buffer(
                name, torch.arange(buffer.numel()).expand(buffer.shape), persistent=False
            )
