"""Measures pictures of a policy, and of the base model's own choice, under one protocol."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from pydantic import Field, PositiveInt

from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.generate import Pictures, generate
from percent_ray.evaluation.quality import Judged, judge_pictures, measure
from percent_ray.evaluation.selection import selection
from percent_ray.models.base import best_device, family
from percent_ray.recipe import tree
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.section import Section
from percent_ray.scorers.base import load_scorer


class Protocol(Section):
    """How a policy is judged: fixed prompts, fixed noise, the plain ODE."""

    prompts: str = "shapes/probe.jsonl"
    """Prompts, .txt or .jsonl."""
    images: Annotated[int, Field(ge=2)] = 30
    """Pictures of a prompt."""
    steps: PositiveInt = 10
    """ODE steps."""
    seed: int = 2026
    """Of the noise, whatever a run's seed is."""
    judges: tuple[str, ...] = ("pickscore", "clip", "geneval")
    """Scorers that fill the quality columns; the first is the reward of the frontier."""
    encoders: tuple[str, ...] = ("clip", "dino", "pickscore")
    """Scorers whose spaces fill the diversity columns, beside the VAE's."""

    def unknown(self, recipe: tree.Recipe) -> str | None:
        """What is wrong, in one line, where a judge or encoder is no scorer of a recipe."""
        missing = {*self.judges, *self.encoders} - recipe.scorers.keys()
        if not missing:
            return None
        return (
            f"evaluation: {', '.join(sorted(missing))} not among scorers "
            f"({', '.join(recipe.scorers)}); add it there with weight 0"
        )


class Judge:
    """Measures a policy's pictures under one protocol; loads every frozen model once.

    Judges and encoders are scorers of the recipe: raises ValueError for one that is not.
    """

    def __init__(self, recipe: tree.Recipe, protocol: Protocol) -> None:
        device = best_device()
        if problem := protocol.unknown(recipe):
            raise ValueError(problem)
        names = dict.fromkeys((*protocol.judges, *protocol.encoders))
        self._scorers = {
            name: load_scorer(name, recipe.scorers[name], device=device) for name in names
        }
        self.units: dict[str, str] = {}
        """Of every judge's values, once it has judged."""
        models = family(recipe.model.family)
        self._policy = models.load_policy(
            recipe.model, seed=recipe.run.seed, device=device, text=True
        )
        self._decoder = models.load_decoder(recipe.model, device=device)
        self._prompts = read_prompts(locate_prompts(protocol.prompts))
        self._batch_size = recipe.sampling.batch_size
        self._protocol = protocol
        self.loaded = [m.describe() for m in (self._policy, self._decoder, *self._scorers.values())]
        """What was loaded, a line each."""

    def __call__(
        self, policy: Path | None
    ) -> tuple[dict[str, float], UInt8[np.ndarray, "P K 3 H W"]]:
        """The numbers of `quality.measure` and the pictures, of the weights in a checkpoint's
        policy folder, or of the model before training."""
        if policy is not None:
            self._policy.load(str(policy))
        made = list(self._generate(self._protocol.images))
        return measure(self._judged(made)), np.stack([group.images.numpy() for group in made])

    def select(self, pool: int) -> list[dict[str, float]]:
        """`selection.selection` from `pool` pictures of each prompt, drawn by the present
        weights."""
        protocol = self._protocol
        judged = list(self._judged(self._generate(pool)))
        return selection(judged, protocol.judges[0], size=protocol.images, seed=protocol.seed)

    def _generate(self, images: int) -> Iterator[Pictures]:
        return generate(
            self._policy,
            self._decoder,
            self._prompts,
            images=images,
            steps=self._protocol.steps,
            seed=self._protocol.seed,
            batch_size=self._batch_size,
        )

    def _judged(self, made: Iterable[Pictures]) -> Iterator[Judged]:
        for judged in judge_pictures(
            made,
            judges={name: self._scorers[name] for name in self._protocol.judges},
            encoders={name: self._scorers[name] for name in self._protocol.encoders},
        ):
            self.units |= {name: report.unit for name, report in judged.reports.items()}
            yield judged
