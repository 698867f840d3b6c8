"""The perception role: one sampled group in, its rewards and perceptual log-probs out.

Everything runs on old-policy rollouts under no_grad: it is a reward, never a loss through the
decoder (docs/method.md, "Perceptual entropy").
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.data import arrow
from percent_ray.models import batch
from percent_ray.models.base import Decoder, best_device, family
from percent_ray.models.decoder import load_tiny
from percent_ray.objective.diversity import variance_per_dimension
from percent_ray.objective.entropy import FeatureScale, perceptual_log_prob, scale_features
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.tree import Recipe
from percent_ray.scorers.base import Checked, Scorer, Unanswered, load_scorer, try_out
from percent_ray.types import Perception, Prompt, Span, Trajectory

PAUSES_S = (5.0, 15.0, 45.0, 120.0)
"""Before a server that did not answer is asked again; the last one before each further try."""
THUMBNAIL = 256
"""Pixels of a thumbnail's longer side, at most."""


class PerceptionWorker:
    """Holds the decoders and the frozen scorers, loaded at the first call where not given.

    `decoder` is that of finished images; a decoder of scored transitions is loaded beside it where
    `perceptual.decoder` is tiny and there are any.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        worker: str,
        decoder: Decoder | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.recipe = recipe
        self.worker = worker
        self._decoder = decoder
        self._tiny: Decoder | None = None
        self._batches: dict[Decoder, tuple[int, str]] = {}
        """Images in one call, and for `auto` a line that says why."""
        self._scorers = {
            name: Checked(name, scorer, batch_size=recipe.scorers[name].batch_size)
            for name, scorer in (scorers or {}).items()
        }

    def ready(self) -> list[str]:
        """Load every frozen model; lines that say what was loaded. Raises the loaders' ValueError
        for a bad folder."""
        device = best_device()
        for name, scorer in self.recipe.scorers.items():
            if name not in self._scorers:
                self._scorers[name] = load_scorer(name, scorer, device=device)
        model = self.recipe.model
        loaders = family(model.family)
        if self._decoder is None:
            self._decoder = loaders.load_decoder(model, device=device)
        if self._tiny is None and self.recipe.scores_by_tiny:
            options = {"default": loaders.TINY, "device": device}
            self._tiny = load_tiny(model, self.recipe.perceptual.tiny_path, **options)
        lines = self._choose_batches(batch.card(device, self.recipe.runtime))
        return [*lines, *(scorer.describe() for scorer in self._scorers.values())]

    def _choose_batches(self, card: batch.Card | None) -> list[str]:
        """When all is loaded; a line for each decoder."""
        recipe, decoder = self.recipe, self._decoder
        assert decoder is not None
        needed = {decoder: recipe.sampling.group_size}
        scoring = self._tiny or decoder
        needed[scoring] = max(needed.get(scoring, 0), recipe.scored_images)
        lines: list[str] = []
        for decoder, images in needed.items():
            if decoder not in self._batches:
                asked, size = recipe.perceptual.batch_size, recipe.model.size
                chosen = batch.choose(asked, decoder, size, images=images, card=card)
                self._batches[decoder] = chosen
            why = self._batches[decoder][1]
            lines.append(decoder.describe() + (f"; {why}" if why else ""))
        return lines

    def try_out(self, prompt: Prompt) -> None:
        """Every scorer on grey pictures of the run's size for its first prompt. Raises ValueError
        that names the scorer, in one line, for whatever goes wrong."""
        self.ready()
        recipe = self.recipe
        encoders = {*recipe.image_spaces, *recipe.measured_spaces(probe=True)}
        for name, scorer in self._scorers.items():
            scores, encodes = name in recipe.scored, name in encoders
            try_out(scorer, prompt, scores=scores, encodes=encodes, size=recipe.model.size)

    @torch.no_grad()
    def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        """Rewards, perceptual log-probs, features and variances of one group.

        A reward that raises, is not finite or breaks the contract of `scorers.base` is tried
        again, then reported in `failures`; it never becomes 0. Errors of the decoder or of an
        encoder are errors of the run.
        """
        start = time.time()
        self.ready()
        payload: pa.Table = trajectory.payload
        final = arrow.column(payload, "final")
        images = self._decode(self._decoder, final)
        rewards, failures, dropped = self._rewards(images, trajectory.prompt)
        scored = {} if dropped else self._scored_steps(trajectory, payload)
        spaces = self.recipe.image_spaces
        features = {space: self._scorers[space].encode(images).numpy() for space in spaces}
        return Perception(
            group_id=trajectory.group_id,
            rewards=rewards,
            log_p_perc=scored,
            log_p_policy=_log_prob(trajectory, payload),
            features=features,
            variance={
                "latent": variance_per_dimension(final),
                "pixel": variance_per_dimension(images / 255),
            },
            thumbnails=_thumbnails(images) if pictures else None,
            failures=failures,
            dropped=dropped,
            span=Span("perceive", self.worker, start, time.time(), trajectory.group_id),
        )

    def _rewards(
        self, images: UInt8[Tensor, "K 3 h w"], prompt: Prompt
    ) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
        """Rewards and lines of failures by scorer, and whether a required one failed."""
        rewards: dict[str, np.ndarray] = {}
        failures: dict[str, str] = {}
        dropped = False
        for name in self.recipe.scored:
            settings = self.recipe.scorers[name]
            try:
                rewards[name] = retried(
                    lambda scorer=self._scorers[name]: scorer.score(images, [prompt] * len(images)),
                    retries=settings.retries,
                )
            except Exception as error:
                said = first_line(error).removeprefix(f"scorers.{name}: ")
                failures[name] = f"scorers.{name}: {said}"
                dropped |= settings.required or name in self.recipe.of_method("judges")
        paid = [name for name in rewards if self.recipe.scorers[name].weight]
        return rewards, failures, dropped or not paid

    def _scored_steps(self, trajectory: Trajectory, payload: pa.Table) -> dict[str, np.ndarray]:
        """Perceptual log-prob [K, N] in every measured space: samples and means are decoded
        together."""
        spaces = self.recipe.measured_spaces(probe=trajectory.group_id < 0)
        if not spaces:
            return {}
        perceptual = self.recipe.perceptual
        pairs, std = scored_pairs(trajectory, payload, perceptual.decode)
        images = self._decode(self._tiny or self._decoder, pairs.flatten(0, 2))
        options = {"shape": pairs.shape[:3], "std": std, "scale": perceptual.feature_scale}
        return {
            space: log_p_perc(self._scorers[space], images, **options).numpy() for space in spaces
        }

    def _decode(self, decoder: Decoder | None, latents: Tensor) -> UInt8[Tensor, "N 3 h w"]:
        assert decoder is not None
        batches = latents.split(self._batches[decoder][0])
        return torch.cat([decoder.decode(part) for part in batches])


def scored_pairs(
    trajectory: Trajectory, payload: pa.Table, decode: Literal["noisy", "clean"]
) -> tuple[Float32[Tensor, "2 K N C H W"], Float32[Tensor, " N"]]:
    """Samples and means of the scored steps, as they are or as their clean predictions, and the
    steps' std."""
    columns = [trajectory.steps.index(step) for step in trajectory.scored]
    if decode == "clean":
        samples = arrow.column(payload, "clean_next")
        means = arrow.column(payload, "clean_mean")
    else:
        samples = arrow.column(payload, "latents")[:, [i + 1 for i in columns]]
        means = arrow.column(payload, "means")[:, columns]
    return torch.stack([samples, means]), torch.tensor(trajectory.std)[columns]


def log_p_perc(
    scorer: Scorer,
    images: UInt8[Tensor, "N 3 h w"],
    *,
    shape: Sequence[int],
    std: Float32[Tensor, " S"],
    scale: FeatureScale,
) -> Float32[Tensor, "K S"]:
    """Perceptual log-prob in a scorer's space of decoded `scored_pairs`, whose first three sizes
    are `shape`."""
    features = scale_features(scorer.encode(images), scale)
    samples, means = features.unflatten(0, tuple(shape))
    return perceptual_log_prob(samples, means, std)


def retried(score: Callable[[], Tensor], *, retries: int) -> Float32[np.ndarray, " K"]:
    """`score()` as finite float32 values, called up to 1 + `retries` times, at once; but a server
    that does not answer is left `PAUSES_S` to come back.

    Raises the last call's error, or ValueError where the values were not finite.
    """
    for attempt in range(retries + 1):
        try:
            values = score().float().cpu().numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"{np.sum(~np.isfinite(values))} of {len(values)} not finite")
            return values
        except Exception as error:
            if attempt == retries:
                raise
            if isinstance(error, Unanswered):
                time.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
    raise AssertionError("unreachable")


def _log_prob(trajectory: Trajectory, payload: pa.Table) -> Float32[np.ndarray, "K S"]:
    if not trajectory.steps:
        return np.zeros((payload.num_rows, 0), np.float32)
    return arrow.column(payload, "log_probs").numpy().copy()


def _thumbnails(images: UInt8[Tensor, "K 3 H W"]) -> UInt8[np.ndarray, "K 3 h w"]:
    factor = THUMBNAIL / max(images.shape[-2:])
    if factor < 1:
        images = (
            torch.nn.functional.interpolate(images.float(), scale_factor=factor, mode="area")
            .round()
            .to(torch.uint8)
        )
    return images.cpu().numpy()
