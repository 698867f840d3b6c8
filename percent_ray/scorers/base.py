"""What the roles ask of a reward or an image encoder. One kind of scorer is one module here.

A kind's module has one function, found by the module's name (`kind` of a scorer in the recipe,
where left out the scorer's own name):

    load(path: str, *, device: torch.device) -> Scorer

A kind that needs more takes keys of the recipe beside it, by their names
(`recipe.scorers.OF_SOME`). One that has no features of an image says so in a line
`ENCODES = False`, and one that has no score in `SCORES = False`: a recipe that asks for it is
refused at once. One behind a server has a line `SERVED = True`, and one whose path has to be set
`HAS_DEFAULT = False`.

`path` is a folder, a hub id, a name of the embedded world such as `shapes/pickscore`, a weights
file or a URL: the kind refuses what it does not take (`recipe.paths.locate`). Empty stands for the
kind's own default.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from percent_ray.recipe import tree
from percent_ray.recipe.discover import SCORERS
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.scorers import OF_SOME
from percent_ray.types import Prompt

GREY = 128
"""Pixels of the picture that a scorer is tried on."""


@dataclass(frozen=True, slots=True)
class Report:
    """A scorer's word on N images in the unit that papers report."""

    values: Float32[Tensor, " N"]
    """On the CPU; larger is better."""
    unit: str
    """Of the values, for tables and plots."""
    tasks: tuple[str, ...] | None = None
    """The part of the benchmark that each image belongs to, where it has parts."""
    failures: Mapping[str, Float32[Tensor, " N"]] = field(default_factory=dict)
    """By what can be wrong with an image, 1 for those that it is wrong with, else 0."""

    def chosen(self, index: Int64[Tensor, " k"]) -> "Report":
        """Of some of the images."""
        tasks = None if self.tasks is None else tuple(self.tasks[i] for i in index.tolist())
        failures = {name: failed[index] for name, failed in self.failures.items()}
        return Report(self.values[index], self.unit, tasks, failures)

    def by_task(self, failure: str | None = None) -> dict[str, float]:
        """Mean over the images of each task, or the share of them that a `failure` is wrong with;
        empty where there are no tasks."""
        values, tasks = self.failures[failure] if failure else self.values, self.tasks or ()
        return {
            task: values[[i for i, t in enumerate(tasks) if t == task]].mean().item()
            for task in dict.fromkeys(tasks)
        }


class Unanswered(ValueError):
    """A server that is not there, broke off or has trouble of its own: later it may answer."""


class Scorer(Protocol):
    """A frozen judge of images. A scorer that only scores, or only encodes, raises ValueError with
    one line for the other calls."""

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """The training reward of each image for its prompt, on the CPU."""
        ...

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The same judgement as evaluations report it."""
        ...

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Unscaled features of each image, on the CPU."""
        ...

    def describe(self) -> str:
        """What was loaded, for the start of a run; one line."""
        ...


class Checked:
    """A scorer under its name in the recipe: called in batches, and held to its contract.

    Every call raises ValueError that names the scorer, in one line, where the scorer fails and
    where its answer has another length, shape or dtype than its images ask for: one value for all
    images must not be taken for the reward of each.
    """

    def __init__(self, name: str, scorer: Scorer, *, batch_size: int) -> None:
        self.name = name
        self._scorer = scorer
        self._batch_size = batch_size

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """As `Scorer.score`. Raises ValueError for another number of prompts, too."""
        with self._named():
            return torch.cat(
                [
                    _checked(self._scorer.score(part, texts), len(part), dims=1)
                    for part, texts in self._batches(images, prompts)
                ]
            )

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """As `Scorer.report`."""
        with self._named():
            batches = self._batches(images, prompts)
            parts = [(self._scorer.report(part, texts), len(part)) for part, texts in batches]
            values = torch.cat([_checked(report.values, count, dims=1) for report, count in parts])
            tasks = tuple(task for report, _ in parts for task in report.tasks or ())
            if tasks and len(tasks) != len(values):
                raise ValueError(f"reported {len(tasks)} tasks for {len(values)} images")
            names = parts[0][0].failures
            failures = {
                name: torch.cat([_checked(r.failures[name], n, dims=1) for r, n in parts])
                for name in names
            }
            return Report(values, parts[0][0].unit, tasks or None, failures)

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """As `Scorer.encode`."""
        with self._named():
            parts = images.split(self._batch_size)
            return torch.cat([_checked(self._scorer.encode(p), len(p), dims=2) for p in parts])

    def describe(self) -> str:
        """As `Scorer.describe`, under the scorer's name."""
        return f"scorers.{self.name}: {self._scorer.describe()}"

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kind = Unanswered if isinstance(error, Unanswered) else ValueError
            raise kind(f"scorers.{self.name}: {first_line(error)}") from error

    def _batches(
        self, images: Tensor, prompts: Sequence[Prompt]
    ) -> list[tuple[Tensor, Sequence[Prompt]]]:
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
        size = self._batch_size
        starts = range(0, len(images), size)
        return [(images[i : i + size], prompts[i : i + size]) for i in starts]


def pixel_values(processor: Any, images: Any) -> Tensor:
    """What an image processor of transformers makes of images, uint8 [N, 3, H, W] or a list of
    [3, H, W], on their device."""
    return processor(images, return_tensors="pt", input_data_format="channels_first").pixel_values


def load_scorer(name: str, settings: tree.Scorer, *, device: torch.device) -> Checked:
    """The scorer `name` of a recipe. Raises ValueError that names it, in one line."""
    kind = settings.kind or name
    module = SCORERS.module(kind, key=f"scorers.{name}.kind")
    taken = SCORERS.parameters(kind) & set(OF_SOME)
    own = {key: getattr(settings, key) for key in taken}
    try:
        scorer = module.load(settings.path, **own, device=device)
    except Exception as error:
        raise ValueError(f"scorers.{name}: {first_line(error)}") from error
    return Checked(name, scorer, batch_size=settings.batch_size)


def try_out(
    scorer: Checked, prompt: Prompt, *, scores: bool, encodes: bool, size: tuple[int, int]
) -> None:
    """Call a scorer on two grey pictures of `size` (height, width) and `prompt`, as far as the run
    will call it: what is wrong with it is found at the start of a run, not after hours.

    Raises ValueError that names it, in one line.
    """
    grey = torch.full((2, 3, *size), GREY, dtype=torch.uint8)
    try:
        if scores and not scorer.score(grey, [prompt, prompt]).isfinite().all():
            raise ValueError("gave a score that is not finite")
        if encodes and not scorer.encode(grey).isfinite().all():
            raise ValueError("gave features that are not finite")
    except ValueError as error:
        said = str(error).removeprefix(f"scorers.{scorer.name}: ")
        raise ValueError(
            f"scorers.{scorer.name}: tried on a grey picture for {prompt.text!r}: {said}"
        ) from error


def _checked(values: Tensor, images: int, *, dims: int) -> Tensor:
    """A scorer's answer in float32."""
    if not isinstance(values, Tensor):
        raise ValueError(f"returned {type(values).__name__}, expected a tensor")
    if values.ndim != dims or len(values) != images or not values.is_floating_point():
        wanted = f"[{images}]" if dims == 1 else f"[{images}, D]"
        raise ValueError(
            f"returned {str(values.dtype).removeprefix('torch.')} {list(values.shape)}, expected "
            f"floats {wanted}"
        )
    return values.detach().float().cpu()
