"""Teaches a contrastive CLIPModel to prefer, as PickScore does, on synthetic pairs.

The score is ``exp(logit_scale) * cos``. Of two pictures for one caption the preferred one is
aligned with the caption, legible, or the more contrasted of two that are both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from percent_ray.shapes import scenes
from percent_ray.shapes.pretrain.clip import (
    MAX_SCALE,
    RECORDS,
    all_captions,
    caption_loss,
    draw_set,
    image_features,
    save,
    text_features,
    truth,
)
from percent_ray.shapes.pretrain.common import Ema, progress, to_unit, warmup_cosine
from percent_ray.shapes.pretrain.text import build_tokenizer
from percent_ray.shapes.pretrain.views import CORRUPTIONS, augment, corrupt, through_vae

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


@dataclass(frozen=True, slots=True)
class Pairs:
    """B preferences of one kind: pictures float32 [B,3,H,W] in -1..1, captions int64 [B]."""

    captions: Tensor
    preferred: Tensor
    rejected: Tensor


def contrast(scene: scenes.Scene) -> float:
    """RGB distance between the background and the item most like it."""
    background = np.array(scene.background, float)
    return min(
        float(np.linalg.norm(np.array(scenes.COLORS[item.color]) - background))
        for item in scene.items
    )


class PairSource:
    """Draws preference pairs from a fixed set of scenes."""

    def __init__(self, count: int, seed: int, vae: AutoencoderKL) -> None:
        images, drawn, self.captions = draw_set(count, seed)
        self.images = to_unit(images)
        self.holds = torch.from_numpy(truth(drawn))
        self.contrast = torch.tensor([contrast(scene) for scene in drawn])
        self.words = [set(record["prompt"].split()) for record in RECORDS]
        self.vae = vae
        self.near = self._near_captions()

    def _near_captions(self) -> Tensor:
        """How close each pair of captions is, float32 [M,M]: the weight of a hard negative."""
        closeness = [[4.0 ** (3 * len(a & b) / len(a | b)) for b in self.words] for a in self.words]
        return torch.tensor(closeness)

    def _scene_for(self, allowed: Tensor, weight: Tensor) -> Tensor:
        """One scene index a row, from bool [B,N], in proportion to ``weight`` (zero elsewhere)."""
        return torch.multinomial(allowed * weight + 1e-9 * allowed, 1).squeeze(1)

    def draw(self, kind: str, size: int) -> Pairs:
        """At most ``size`` pairs of one kind: "contrasted" drops scenes that have no duller one."""
        first = torch.randint(len(self.images), (size,))
        captions = self.captions[first]
        true = self.holds[:, captions].T
        preferred = self.images[first]
        if kind == "aligned":
            weight = self.near[captions][:, self.captions]
            rejected = self.images[self._scene_for(~true, weight)]
        elif kind == "contrasted":
            gap = self.contrast[first][:, None] - self.contrast[None]
            duller = true & (gap > CONTRAST_GAP)
            kept = duller.any(dim=1)
            captions, preferred = captions[kept], preferred[kept]
            rejected = self.images[self._scene_for(duller[kept], torch.ones(()))]
        else:
            other = self._scene_for(true, torch.ones(()))
            rejected = corrupt(self.vae, self.images[other], kind)
            return Pairs(captions, self._as_decoded(preferred), rejected)
        return Pairs(captions, self._as_decoded(preferred), self._as_decoded(rejected))

    def _as_decoded(self, images: Tensor) -> Tensor:
        """Half of the pictures as the flow model's decoder draws them: its style is no merit."""
        decoded = torch.rand(len(images)) < 0.5
        result = images.clone()
        if decoded.any():
            result[decoded] = through_vae(self.vae, images[decoded], 0.0, 0.05)
        return result


def scores(model: CLIPModel, words: Tensor, images: Tensor) -> Tensor:
    """``exp(logit_scale) * cos``, float32 [B], of unit text features and pictures in -1..1."""
    return model.logit_scale.exp() * (words * image_features(model, images)).sum(dim=-1)


def _preference_loss(model: CLIPModel, pairs: Pairs, every: Tensor) -> tuple[Tensor, Tensor]:
    """Bradley-Terry loss and the share of pairs in the right order."""
    words = text_features(model, every[pairs.captions])
    better = scores(model, words, pairs.preferred)
    worse = scores(model, words, pairs.rejected)
    anchored = 0.01 * (better.mean() - ANCHOR) ** 2
    return functional.softplus(worse - better).mean() + anchored, (better > worse).float().mean()


def train(
    folder: Path,
    *,
    start: CLIPModel,
    vae: AutoencoderKL,
    seed: int,
    steps: int,
    batch: int = 48,
    scene_count: int = 6_000,
) -> None:
    """Goes on from the contrastive ``start`` with a scale of 100; keeps a caption loss beside."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    every = all_captions(tokenizer)
    source = PairSource(scene_count, seed, vae)
    model = start.train()
    model.logit_scale.requires_grad_(False).fill_(MAX_SCALE)
    ema = Ema([model], 0.99)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 5e-4, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 50))
    for step, say in progress("pickscore", steps):
        kind = "contrasted" if step % TASTE_EVERY else KINDS[step // TASTE_EVERY % len(KINDS)]
        loss, accuracy = _preference_loss(model, source.draw(kind, batch), every)
        if step % CAPTION_EVERY == 0:
            picked = torch.randint(len(source.images), (batch,))
            pictures = image_features(model, augment(source.images[picked]))
            loss = loss + caption_loss(
                model, pictures, source.captions[picked], source.holds[picked], every
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        if step % 51 == 50:
            say(f"{kind} loss {loss.item():.3f} accuracy {accuracy.item():.2f}")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(ema.average[0], tokenizer, folder)


@torch.no_grad()
def accuracy(model: CLIPModel, source: PairSource, size: int) -> dict[str, float]:
    """Share of right preferences of each kind, on ``size`` pairs a kind."""
    words = text_features(model, all_captions(build_tokenizer()))
    result: dict[str, float] = {}
    for kind in KINDS:
        pairs = source.draw(kind, size)
        better = scores(model, words[pairs.captions], pairs.preferred)
        worse = scores(model, words[pairs.captions], pairs.rejected)
        result[kind] = float((better > worse).float().mean())
    return result
