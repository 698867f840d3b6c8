"""Teaches a contrastive CLIPModel to prefer, as PickScore does, on synthetic pairs.

The score is ``exp(logit_scale) * cos``. Of two pictures for one caption the preferred one is
aligned with the caption, legible, or the more contrasted of two that are both.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from jobs.pretrain_shapes import clip
from jobs.pretrain_shapes.common import Rates, fit, to_unit
from jobs.pretrain_shapes.text import build_tokenizer
from jobs.pretrain_shapes.views import CORRUPTIONS, augment, corrupt, through_vae
from percent_ray.shapes import scenes

KINDS: Final = ("aligned", "contrasted", *CORRUPTIONS)
"""Why the preferred picture of a pair is preferred."""
ANCHOR: Final = 23.0
"""Mean score of aligned pictures; PickScore's own is near it, and score/26 is then about 0.9."""
CAPTION_EVERY: Final = 4
"""Steps from one caption loss to the next; it keeps what the contrastive training taught."""
CONTRAST_GAP: Final = 20.0
"""Least difference in contrast (RGB distance) that makes a preference: small, so that the score has
to rise all the way. It is what pulls a policy to one look, as the taste of real preference models
does."""
TASTE_EVERY: Final = 2
"""Steps from one batch of "contrasted" pairs to the next."""
RATES: Final = Rates(lr=5e-4, weight_decay=0.05, decay=0.99, beta2=0.98, warmup=50)


class Pairs(NamedTuple):
    """B preferences of one kind: pictures float32 [B,3,H,W] in -1..1, captions int64 [B]."""

    captions: Tensor
    preferred: Tensor
    rejected: Tensor


def contrast(scene: scenes.Scene) -> float:
    """RGB distance between the background and the item most like it."""
    colors = np.array([scenes.COLORS[item.color] for item in scene.items], float)
    return float(np.linalg.norm(colors - scene.background, axis=1).min())


class PairSource:
    """Draws preference pairs from a fixed set of scenes."""

    def __init__(self, count: int, seed: int, vae: AutoencoderKL) -> None:
        images, drawn, self.captions = clip.draw_set(count, seed)
        self.images = to_unit(images)
        self.holds = torch.from_numpy(clip.truth(drawn))
        self.contrast = torch.tensor([contrast(scene) for scene in drawn])
        words = [set(record["prompt"].split()) for record in clip.RECORDS]
        self.near = torch.tensor(
            [[4.0 ** (3 * len(a & b) / len(a | b)) for b in words] for a in words]
        )
        """How close each pair of captions is, float32 [M,M]: the weight of a hard negative."""
        self.vae = vae

    def draw(self, kind: str, size: int) -> Pairs:
        """At most ``size`` pairs of one kind: "contrasted" drops scenes that have no duller one."""
        first = torch.randint(len(self.images), (size,))
        captions = self.captions[first]
        weight = self.holds[:, captions].T
        if kind == "aligned":
            weight = ~weight * self.near[captions][:, self.captions]
        elif kind == "contrasted":
            weight = weight & (self.contrast[first][:, None] - self.contrast > CONTRAST_GAP)
            kept = weight.any(dim=1)
            first, captions, weight = first[kept], captions[kept], weight[kept]
        rejected = self.images[torch.multinomial(weight.float(), 1).squeeze(1)]
        spoiled = kind in CORRUPTIONS
        if spoiled:
            rejected = corrupt(self.vae, rejected, kind)
        preferred = self._as_decoded(self.images[first])
        return Pairs(captions, preferred, rejected if spoiled else self._as_decoded(rejected))

    def _as_decoded(self, images: Tensor) -> Tensor:
        """Half of the pictures as the flow model's decoder draws them: its style is no merit."""
        decoded = torch.rand(len(images)) < 0.5
        drawn = images.clone()
        if decoded.any():
            drawn[decoded] = through_vae(self.vae, images[decoded], 0.0, 0.05)
        return drawn


def scores(model: CLIPModel, words: Tensor, images: Tensor) -> Tensor:
    """``exp(logit_scale) * cos``, float32 [B], of unit text features and pictures in -1..1."""
    return model.logit_scale.exp() * (words * clip.image_features(model, images)).sum(dim=-1)


def ranked(model: CLIPModel, pairs: Pairs, every: Tensor) -> tuple[Tensor, Tensor]:
    """Scores float32 [B] of the preferred and of the rejected pictures; ``every`` caption's ids."""
    words = clip.text_features(model, every[pairs.captions])
    return scores(model, words, pairs.preferred), scores(model, words, pairs.rejected)


def train(
    folder: Path,
    *,
    vae: AutoencoderKL,
    seed: int,
    steps: int,
    batch: int = 48,
    scene_count: int = 6_000,
) -> None:
    """Goes on from the contrastive model of ``folder``, at a scale of 100, with a caption loss."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).train()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    every = clip.all_captions(tokenizer)
    source = PairSource(scene_count, seed, vae)
    model.logit_scale.requires_grad_(False).fill_(clip.MAX_SCALE)

    def loss(step: int) -> tuple[Tensor, str]:
        kind = "contrasted" if step % TASTE_EVERY else KINDS[step // TASTE_EVERY % len(KINDS)]
        better, worse = ranked(model, source.draw(kind, batch), every)
        anchored = 0.01 * (better.mean() - ANCHOR) ** 2
        value = functional.softplus(worse - better).mean() + anchored
        note = f"{kind} {value.item():.3f} accuracy {(better > worse).float().mean().item():.2f}"
        if step % CAPTION_EVERY == 0:
            picked = torch.randint(len(source.images), (batch,))
            pictures = clip.image_features(model, augment(source.images[picked]))
            captions, holds = source.captions[picked], source.holds[picked]
            value = value + clip.caption_loss(model, pictures, captions, holds, every)
        return value, note

    def keep(averages: list[CLIPModel]) -> None:
        clip.save(averages[0], tokenizer, folder)

    fit(folder.name, [model], loss, keep, steps, RATES)


@torch.no_grad()
def accuracy(model: CLIPModel, source: PairSource, size: int) -> dict[str, float]:
    """Share of right preferences of each kind, on ``size`` pairs a kind."""
    every = clip.all_captions(build_tokenizer())
    shares: dict[str, float] = {}
    for kind in KINDS:
        better, worse = ranked(model, source.draw(kind, size), every)
        shares[kind] = float((better > worse).float().mean())
    return shares
