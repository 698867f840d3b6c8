"""Measures pictures of a policy, and of the base model's own choice, under one protocol."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from percent_ray.comparison.plan import Evaluation
from percent_ray.config import Recipe, locate_prompts
from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.generate import Pictures, generate
from percent_ray.evaluation.quality import Seen, look, measure
from percent_ray.evaluation.selection import selection
from percent_ray.models.base import family
from percent_ray.runtime.device import best_device
from percent_ray.scorers.base import load


class Judge:
    """Measures a policy's pictures under one protocol; loads every frozen model once."""

    def __init__(self, recipe: Recipe, evaluation: Evaluation) -> None:
        device = best_device()
        names = dict.fromkeys((*evaluation.judges, *evaluation.encoders))
        paths = {n: recipe.scorers[n].path if n in recipe.scorers else "" for n in names}
        self._scorers = {name: load(name, path, device=device) for name, path in paths.items()}
        models = family(recipe.model.family)
        self._policy = models.load_policy(
            recipe.model, seed=recipe.run.seed, device=device, text=True
        )
        self._decoder = models.load_decoder(recipe.model, device=device)
        self._prompts = read_prompts(locate_prompts(evaluation.prompts))
        self._batch_size = recipe.sampling.batch_size
        self._evaluation = evaluation

    def __call__(self, policy: Path | None) -> tuple[dict[str, float], np.ndarray]:
        """The numbers of `evaluation.quality.measure` and the pictures, uint8 [P, K, 3, H, W], of
        the weights in a checkpoint's policy folder, or of the model before training."""
        if policy is not None:
            self._policy.load(str(policy))
        made = list(self._generate(self._evaluation.images))
        return measure(self._look(made)), np.stack([pictures.images.numpy() for pictures in made])

    def select(self, pool: int) -> list[dict[str, float]]:
        """`evaluation.selection.selection` from `pool` pictures of each prompt, drawn by the
        present weights."""
        settings = self._evaluation
        seen = list(self._look(self._generate(pool)))
        return selection(seen, settings.judges[0], size=settings.images, seed=settings.seed)

    def _generate(self, images: int) -> Iterator[Pictures]:
        settings = self._evaluation
        return generate(
            self._policy,
            self._decoder,
            self._prompts,
            images=images,
            steps=settings.steps,
            seed=settings.seed,
            batch_size=self._batch_size,
        )

    def _look(self, made: Iterable[Pictures]) -> Iterator[Seen]:
        settings = self._evaluation
        judges = {name: self._scorers[name] for name in settings.judges}
        return look(made, judges=judges, encoders={n: self._scorers[n] for n in settings.encoders})
