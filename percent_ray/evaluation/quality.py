"""What frozen models say of a policy's pictures: quality, diversity, GenEval's tasks.

PAPER section 5, in the columns that the scorers at hand can fill. Our protocol for diversity: the K
pictures of one prompt, then the mean over prompts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from percent_ray.evaluation.diversity import feature_variance, vendi
from percent_ray.evaluation.generate import Pictures
from percent_ray.scorers.base import Scorer
from percent_ray.scorers.geneval import GenEval
from percent_ray.scorers.pickscore import REPORT_FACTOR

LATENT = "vae"
"""The space of the pictures' latents, beside those of the encoders."""


@dataclass
class Tally:
    """Means by name."""

    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def note(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(found)) for name, found in self.values.items()}


def measure(
    pictures: Iterable[Pictures], *, judges: Mapping[str, Scorer], encoders: Mapping[str, Scorer]
) -> dict[str, float]:
    """Means over prompts, by name:

    `quality/NAME` of every judge (PickScore in the papers' unit, score / 100; GenEval as the share
    that its rules call right), `geneval/TASK`, and for every encoder and the VAE's latents
    `vendi/SPACE` and `variance/SPACE` (trace of the covariance).
    """
    tally = Tally()
    for made in pictures:
        for name, scorer in judges.items():
            _judge(tally, name, scorer, made)
        features = {name: scorer.encode(made.images) for name, scorer in encoders.items()}
        features[LATENT] = made.latents.flatten(1)
        for space, values in features.items():
            tally.note(f"vendi/{space}", vendi(values))
            tally.note(f"variance/{space}", feature_variance(values))
    return tally.means()


def _judge(tally: Tally, name: str, scorer: Scorer, made: Pictures) -> None:
    prompts = [made.prompt] * len(made.images)
    if isinstance(scorer, GenEval):
        right = scorer.correct(made.images, prompts).float().mean().item()
        tally.note(f"quality/{name}", right)
        assert made.prompt.metadata is not None
        tally.note(f"{name}/{made.prompt.metadata['tag']}", right)
    else:
        factor = REPORT_FACTOR if name == "pickscore" else 1.0
        tally.note(f"quality/{name}", factor * scorer.score(made.images, prompts).mean().item())
