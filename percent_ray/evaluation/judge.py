"""Measures pictures of a policy, and of the base model's own choice, under one protocol."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.generate import Pictures, PolicySource
from percent_ray.evaluation.quality import Judged, judge_pictures, measure
from percent_ray.evaluation.selection import selection
from percent_ray.models.base import best_device, family
from percent_ray.recipe import bounds, tree
from percent_ray.recipe.discover import SCORERS
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.scorers import NO_FEATURES, NO_SCORE
from percent_ray.recipe.section import Section
from percent_ray.scorers.base import load_scorer
from percent_ray.types import Prompt

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Protocol(Section):
    """How a policy is judged: fixed prompts, fixed noise, the plain ODE."""

    prompts: str = "shapes/probe.jsonl"
    """Prompts, .txt or .jsonl."""
    images: Annotated[int, Field(ge=2, le=10_000)] = 30
    """Pictures of a prompt."""
    steps: bounds.Steps = 10
    """ODE steps."""
    seed: Seed = 2026
    """Of the noise, whatever a run's seed is."""
    judges: tuple[str, ...] = ("pickscore", "clip", "geneval")
    """Scorers that fill the quality columns; the first is the reward of the frontier."""
    encoders: tuple[str, ...] = ("clip", "dino", "pickscore")
    """Scorers whose spaces fill the diversity columns, beside the VAE's."""

    def problems(self, scorers: Mapping[str, tree.Scorer]) -> Iterator[str]:
        """A line for each judge or encoder that is none of `scorers`, is given twice, or is of a
        kind that cannot do what is asked of it."""
        missing = {*self.judges, *self.encoders} - scorers.keys()
        if missing:
            yield (
                f"evaluation: {', '.join(sorted(missing))} not among scorers "
                f"({', '.join(scorers)}); add it there with weight 0"
            )
        for key, names, cannot, does in (
            ("judges", self.judges, NO_SCORE, "only encodes"),
            ("encoders", self.encoders, NO_FEATURES, "only scores"),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                yield f"evaluation: {key} names {', '.join(twice)} twice; name each once"
            for name in dict.fromkeys(names):
                kind = scorers[name].kind or name if name in scorers else ""
                if kind in SCORERS.names() and SCORERS.has(kind, cannot):
                    yield f"evaluation: {key} names {name}, and a {kind} {does}; leave it out there"

    def read(self, scorers: Mapping[str, tree.Scorer]) -> list[Prompt]:
        """The prompts. Raises ValueError for a file that is none, and for a prompt without the
        record that a geneval among the judges reads."""
        judges = {name: scorers[name] for name in self.judges if name in scorers}
        return read_prompts(locate_prompts(self.prompts), judges=judges)


class Judge:
    """Measures a policy's pictures under one protocol; loads every frozen model once.

    Judges and encoders are scorers of the recipe: raises ValueError for one that is not.
    """

    def __init__(self, recipe: tree.Recipe, protocol: Protocol) -> None:
        device = best_device()
        for problem in protocol.problems(recipe.scorers):
            raise ValueError(problem)
        self._prompts = protocol.read(recipe.scorers)
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
        decoder = models.load_decoder(recipe.model, device=device)
        self._source = PolicySource(
            self._policy, decoder, steps=protocol.steps, batch_size=recipe.sampling.batch_size
        )
        self._protocol = protocol
        self.loaded = [m.describe() for m in (self._policy, decoder, *self._scorers.values())]
        """What was loaded, a line each."""

    def __call__(
        self, policy: Path | None
    ) -> tuple[dict[str, float], UInt8[np.ndarray, "P K 3 H W"]]:
        """The numbers of `quality.measure` and the pictures, of the weights in a checkpoint's
        policy folder, or of the model before training."""
        if policy is not None:
            self._policy.load(str(policy))
        made = list(self._draw(self._protocol.images))
        return measure(self._judge(made)), np.stack([group.images.numpy() for group in made])

    def select(self, pool: int) -> list[dict[str, float]]:
        """`selection.selection` from `pool` pictures of each prompt, drawn by the present
        weights."""
        protocol = self._protocol
        judged = self._judge(self._draw(pool))
        return selection(judged, protocol.judges[0], size=protocol.images, seed=protocol.seed)

    def _draw(self, images: int) -> Iterator[Pictures]:
        for number, prompt in enumerate(self._prompts):
            yield self._source.draw(prompt, number, images=images, seed=self._protocol.seed)

    def _judge(self, made: Iterable[Pictures]) -> list[Judged]:
        judges = {name: self._scorers[name] for name in self._protocol.judges}
        encoders = {name: self._scorers[name] for name in self._protocol.encoders}
        judged = list(judge_pictures(made, judges=judges, encoders=encoders))
        for group in judged:
            self.units |= {name: report.unit for name, report in group.reports.items()}
        return judged
