"""Trains a Dinov2Model without captions: two views of a scene find each other."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from jobs.pretrain_shapes.clip import VISION, image_processor, same_scene_loss
from jobs.pretrain_shapes.common import Rates, fit, to_unit
from jobs.pretrain_shapes.views import augment
from percent_ray.shapes import scenes

RATES: Final = Rates(lr=1e-3, weight_decay=0.05, decay=0.995)


def build() -> Dinov2Model:
    """An untrained ViT of patch 4 at 32x32, 64 features."""
    return Dinov2Model(Dinov2Config(**VISION))


def save(model: nn.Module, folder: Path) -> None:
    """Writes the model in float16 and its image processor."""
    half = build()
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    image_processor(BitImageProcessor).save_pretrained(folder)


def image_features(model: Dinov2Model, images: Tensor) -> Tensor:
    """Unit features float32 [N,64] (the class token) of pictures in -1..1."""
    return functional.normalize(model(pixel_values=images).pooler_output, dim=-1)


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 48, scene_count: int = 10_000
) -> None:
    """Trains with a projection head that is thrown away; saves the averaged weights.

    A part of the loss acts on the class token itself, because that token, not the head's
    output, is the feature that scorers compare by cosine.
    """
    torch.manual_seed(seed)
    model = build()
    head = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    images, _ = scenes.dataset(scene_count, seed)

    def loss(_: int) -> tuple[Tensor, str]:
        picked = torch.randint(len(images), (batch,))
        shown = to_unit(images[picked.numpy()])
        views = torch.cat([augment(shown), augment(shown)])
        token = model(pixel_values=views).pooler_output
        one, two = functional.normalize(head(token), dim=-1).chunk(2)
        near, far = functional.normalize(token, dim=-1).chunk(2)
        return same_scene_loss(one, two) + 0.5 * same_scene_loss(near, far), ""

    fit("dino", [model, head], loss, lambda means: save(means[0], folder), steps, RATES)
