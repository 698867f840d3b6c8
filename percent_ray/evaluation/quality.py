"""What frozen models say of a policy's pictures: quality, diversity, the tasks of a benchmark.

docs/method.md, "What is measured", in the columns that the scorers at hand can fill. Our protocol
for diversity: the K pictures of one prompt, then the mean over prompts.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from percent_ray.evaluation.generate import Pictures
from percent_ray.objective.diversity import cosine_distance, feature_variance, vendi
from percent_ray.scorers.base import Report, Scorer

LATENT = "vae"
"""The space of the pictures' latents, beside those of the encoders."""
CENTRED = "vae_centred"
"""The same less the mean latent of all the pictures: what they share, as a brighter background of
every one, raises every cosine in `LATENT` and none here."""
SPACES = (LATENT, CENTRED)
"""Of diversity, beside those of the encoders."""


class Asked(NamedTuple):
    """What a scorer is asked of pictures."""

    reports: bool
    encodes: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """One scorer's word on the K pictures of one prompt, as far as it was asked for."""

    report: Report | None = None
    features: Float[Tensor, "K D"] | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What frozen models say of each of the K pictures of one prompt."""

    reports: Mapping[str, Report] = field(default_factory=dict)
    """By judge."""
    features: Mapping[str, Float[Tensor, "K D"]] = field(default_factory=dict)
    """By encoder, and the latents where there are any."""

    @classmethod
    def of(cls, judgements: Mapping[str, Judgement]) -> "Judged":
        """By scorer, and under `LATENT` that of the latents."""
        reports = {name: j.report for name, j in judgements.items() if j.report is not None}
        features = {name: j.features for name, j in judgements.items() if j.features is not None}
        return cls(reports, features)

    def chosen(self, index: Int64[Tensor, " k"]) -> "Judged":
        """Some of the pictures."""
        return Judged(
            {name: report.chosen(index) for name, report in self.reports.items()},
            {name: values[index] for name, values in self.features.items()},
        )


def judgement(scorer: Scorer, pictures: Pictures, asked: Asked) -> Judgement:
    """What one scorer says of pictures. Raises ValueError as `check` does."""
    prompts = [pictures.prompt] * len(pictures.images)
    said = Judgement(
        scorer.report(pictures.images, prompts) if asked.reports else None,
        scorer.encode(pictures.images) if asked.encodes else None,
    )
    check(said, asked, images=len(prompts))
    return said


def check(said: Judgement, asked: Asked, *, images: int) -> None:
    """Raises ValueError where a scorer has not said what it was asked, for another number of values
    or vectors than pictures, for those that are not finite, and for vectors of length 0, which have
    no direction."""
    for name, wanted, found in (
        ("scores", asked.reports, said.report),
        ("features", asked.encodes, said.features),
    ):
        if wanted and found is None:
            raise ValueError(f"no {name}")
    if said.report is not None:
        for name, values in {"scores": said.report.values, **said.report.failures}.items():
            if values.shape != (images,):
                raise ValueError(f"{name}: {list(values.shape)} for {images} pictures")
            if bad := int((~values.isfinite()).sum()):
                raise ValueError(f"{bad} of {images} {name} are not finite")
        if said.report.tasks is not None and len(said.report.tasks) != images:
            raise ValueError(f"{len(said.report.tasks)} tasks for {images} pictures")
    if said.features is not None:
        shape = list(said.features.shape)
        if len(shape) != 2 or shape[0] != images or not shape[1]:
            raise ValueError(f"features: {shape} for {images} pictures")
        lengths = said.features.double().norm(dim=1)
        if bad := int((~(lengths.isfinite() & (lengths > 0))).sum()):
            raise ValueError(f"{bad} of {images} feature vectors are 0 or not finite")


def of_latents(pictures: Pictures) -> dict[str, Judgement]:
    """The latents as the features of one more space, where there are any."""
    if pictures.latents is None:
        return {}
    return {LATENT: Judgement(features=pictures.latents.flatten(1))}


def judge_pictures(
    pictures: Iterable[Pictures], *, judges: Mapping[str, Scorer], encoders: Mapping[str, Scorer]
) -> Iterator[Judged]:
    """Every judge's and encoder's word on the pictures of each prompt."""
    for made in pictures:
        asked = {
            name: judgement(scorer, made, Asked(name in judges, name in encoders))
            for name, scorer in {**judges, **encoders}.items()
        }
        yield Judged.of(asked | of_latents(made))


def by_prompt(judged: Collection[Judged]) -> dict[str, Float64[np.ndarray, " P"]]:
    """Each prompt's numbers, by name, nan where a prompt has none:

    `quality/NAME` of every judge and `NAME/TASK` of one whose benchmark has tasks, in the units of
    their reports, and `failed/NAME/TASK/FAILURE` of one that says why; for every encoder and of
    `SPACES` `vendi/SPACE`, and `variance/SPACE` (trace of the covariance) and `distance/SPACE`
    (mean cosine distance of two pictures) but for `CENTRED`.

    `judged` is gone through twice, and never held as a whole: it may read from disk.
    """
    found: dict[str, dict[int, float]] = {}
    shared = _mean_latent(judged)
    for number, group in enumerate(judged):
        for name, report in group.reports.items():
            found.setdefault(f"quality/{name}", {})[number] = report.values.mean().item()
            for task, mean in report.by_task().items():
                found.setdefault(f"{name}/{task}", {})[number] = mean
            for failure in report.failures:
                for task, share in report.by_task(failure).items():
                    found.setdefault(f"failed/{name}/{task}/{failure}", {})[number] = share
        for space, features in group.features.items():
            for measure_name, of in MEASURES.items():
                found.setdefault(f"{measure_name}/{space}", {})[number] = of(features)
        if shared is not None and LATENT in group.features:
            centred = vendi(group.features[LATENT].float() - shared)
            found.setdefault(f"vendi/{CENTRED}", {})[number] = centred
    count = len(judged)
    return {
        name: np.array([values.get(number, math.nan) for number in range(count)])
        for name, values in found.items()
    }


def measure(judged: Collection[Judged]) -> dict[str, float]:
    """Means over prompts of `by_prompt`, over those that have the number."""
    return {name: float(np.nanmean(values)) for name, values in by_prompt(judged).items()}


MEASURES = {"vendi": vendi, "variance": feature_variance, "distance": cosine_distance}
"""Of diversity in one space."""


def _mean_latent(judged: Iterable[Judged]) -> Float[Tensor, " D"] | None:
    """Of all pictures; None where there are no latents."""
    total, count = None, 0
    for group in judged:
        if (latents := group.features.get(LATENT)) is not None:
            summed = latents.double().sum(0)
            total = summed if total is None else total + summed
            count += len(latents)
    return None if total is None else (total / count).float()
