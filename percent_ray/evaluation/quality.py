"""What frozen models say of a policy's pictures: quality, diversity, GenEval's tasks.

PAPER section 5, in the columns that the scorers at hand can fill. Our protocol for diversity: the K
pictures of one prompt, then the mean over prompts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from percent_ray.evaluation.diversity import feature_variance, vendi
from percent_ray.evaluation.generate import Pictures
from percent_ray.scorers.base import Scorer
from percent_ray.scorers.geneval import GenEval
from percent_ray.scorers.pickscore import REPORT_FACTOR
from percent_ray.types import Prompt

LATENT = "vae"
"""The space of the pictures' latents, beside those of the encoders."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What frozen models say of each of the K pictures of one prompt."""

    prompt: Prompt
    scores: Mapping[str, Float32[Tensor, " K"]]
    """By judge: PickScore in the papers' unit, score / 100; GenEval 1 where its rules say right."""
    features: Mapping[str, Float[Tensor, "K D"]]
    """By encoder, and the latents."""

    def chosen(self, index: Int64[Tensor, " k"]) -> "Seen":
        """Some of the pictures."""
        scores = {name: values[index] for name, values in self.scores.items()}
        return Seen(self.prompt, scores, {n: values[index] for n, values in self.features.items()})


def look(
    pictures: Iterable[Pictures], *, judges: Mapping[str, Scorer], encoders: Mapping[str, Scorer]
) -> Iterator[Seen]:
    """Every judge's and encoder's word on the pictures of each prompt."""
    for made in pictures:
        scores = {name: _scores(name, scorer, made) for name, scorer in judges.items()}
        features = {name: scorer.encode(made.images) for name, scorer in encoders.items()}
        yield Seen(made.prompt, scores, {**features, LATENT: made.latents.flatten(1)})


def measure(seen: Iterable[Seen]) -> dict[str, float]:
    """Means over prompts, by name:

    `quality/NAME` of every judge, `geneval/TASK`, and for every encoder and the VAE's latents
    `vendi/SPACE` and `variance/SPACE` (trace of the covariance).
    """
    values: dict[str, list[float]] = {}
    for group in seen:
        for name, scores in group.scores.items():
            mean = scores.mean().item()
            values.setdefault(f"quality/{name}", []).append(mean)
            if name == "geneval":
                assert group.prompt.metadata is not None, "GenEval has judged it"
                values.setdefault(f"{name}/{group.prompt.metadata['tag']}", []).append(mean)
        for space, features in group.features.items():
            values.setdefault(f"vendi/{space}", []).append(vendi(features))
            values.setdefault(f"variance/{space}", []).append(feature_variance(features))
    return {name: float(np.mean(found)) for name, found in values.items()}


def _scores(name: str, scorer: Scorer, made: Pictures) -> Float32[Tensor, " K"]:
    prompts = [made.prompt] * len(made.images)
    if isinstance(scorer, GenEval):
        return scorer.correct(made.images, prompts).float()
    factor = REPORT_FACTOR if name == "pickscore" else 1.0
    return factor * scorer.score(made.images, prompts).float()
