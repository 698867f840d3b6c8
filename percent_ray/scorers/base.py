"""What the roles ask of a reward or an image encoder. One scorer is one module in this folder.

A scorer's module has one function, found by the module's name (a key of `scorers` in the recipe):

    load(path: str, *, device: torch.device) -> Scorer

`path` is a folder, a hub id, or a name of the embedded world such as `shapes/pickscore`.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray import scorers
from percent_ray.types import Prompt


class Scorer(Protocol):
    """A frozen judge of images. A scorer that only scores, or only encodes, raises ValueError with
    one line for the other call."""

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """The training reward of each image for its prompt, on the CPU."""
        ...

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Unscaled features of each image, on the CPU."""
        ...


def load(name: str, path: str, *, device: torch.device) -> Scorer:
    """The scorer `name` of `path`, its own default where empty. Raises ValueError that lists the
    known scorers."""
    return module(name).load(path, device=device)


def module(name: str) -> ModuleType:
    """The module of a scorer. Raises ValueError that lists the known scorers."""
    known = sorted(m.name for m in pkgutil.iter_modules(scorers.__path__) if m.name != "base")
    if name not in known:
        raise ValueError(f"scorers: unknown {name!r}; known are {', '.join(known)}")
    return importlib.import_module(f"{scorers.__name__}.{name}")
