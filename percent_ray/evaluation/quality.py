"""What frozen models say of a policy's pictures: quality, diversity, the tasks of a benchmark.

docs/method.md, "What is measured", in the columns that the scorers at hand can fill. Our protocol
for diversity: the K pictures of one prompt, then the mean over prompts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from percent_ray.evaluation.generate import Pictures
from percent_ray.objective.diversity import feature_variance, vendi
from percent_ray.scorers.base import Report, Scorer

LATENT = "vae"
"""The space of the pictures' latents, beside those of the encoders."""
CENTRED = "vae_centred"
"""The same less the mean latent of all the pictures: what they share, as a brighter background of
every one, raises every cosine in `LATENT` and none here."""
SPACES = (LATENT, CENTRED)
"""Of diversity, beside those of the encoders."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What frozen models say of each of the K pictures of one prompt."""

    reports: Mapping[str, Report]
    """By judge."""
    features: Mapping[str, Float[Tensor, "K D"]]
    """By encoder, and the latents."""

    def chosen(self, index: Int64[Tensor, " k"]) -> "Judged":
        """Some of the pictures."""
        return Judged(
            {name: report.chosen(index) for name, report in self.reports.items()},
            {name: values[index] for name, values in self.features.items()},
        )


def judge_pictures(
    pictures: Iterable[Pictures], *, judges: Mapping[str, Scorer], encoders: Mapping[str, Scorer]
) -> Iterator[Judged]:
    """Every judge's and encoder's word on the pictures of each prompt."""
    for made in pictures:
        prompts = [made.prompt] * len(made.images)
        reports = {name: judge.report(made.images, prompts) for name, judge in judges.items()}
        features = {name: encoder.encode(made.images) for name, encoder in encoders.items()}
        yield Judged(reports, {**features, LATENT: made.latents.flatten(1)})


def measure(judged: Iterable[Judged]) -> dict[str, float]:
    """Means over prompts, by name:

    `quality/NAME` of every judge and `NAME/TASK` of one whose benchmark has tasks, in the units of
    their reports; for every encoder and of `SPACES` `vendi/SPACE`, and `variance/SPACE` (trace of
    the covariance) but for `CENTRED`, whose variance is that of `LATENT`.
    """
    values: dict[str, list[float]] = {}
    groups = list(judged)
    shared = torch.cat([group.features[LATENT] for group in groups]).float().mean(0)
    for group in groups:
        for name, report in group.reports.items():
            values.setdefault(f"quality/{name}", []).append(report.values.mean().item())
            for task, mean in report.by_task().items():
                values.setdefault(f"{name}/{task}", []).append(mean)
        for space, features in group.features.items():
            values.setdefault(f"vendi/{space}", []).append(vendi(features))
            values.setdefault(f"variance/{space}", []).append(feature_variance(features))
        centred = vendi(group.features[LATENT].float() - shared)
        values.setdefault(f"vendi/{CENTRED}", []).append(centred)
    return {name: float(np.mean(each)) for name, each in values.items()}
