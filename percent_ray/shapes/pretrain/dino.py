"""Trains a Dinov2Model without captions: two views of a scene find each other."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from percent_ray.shapes import scenes
from percent_ray.shapes.pretrain.clip import IMAGE_MEAN, same_scene_loss
from percent_ray.shapes.pretrain.common import Ema, progress, to_unit, warmup_cosine
from percent_ray.shapes.pretrain.views import augment


def build() -> Dinov2Model:
    """An untrained ViT of patch 4 at 32x32, 64 features."""
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=4,
        image_size=scenes.SIZE,
        patch_size=4,
    )
    return Dinov2Model(config)


def image_processor() -> BitImageProcessor:
    """Pixels to -1..1 at 32x32, in DINOv2's own format."""
    return BitImageProcessor(
        size={"shortest_edge": scenes.SIZE},
        crop_size={"height": scenes.SIZE, "width": scenes.SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_MEAN),
    )


def save(model: Dinov2Model, folder: Path) -> None:
    """Writes the model in float16 and its image processor."""
    half = build()
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    image_processor().save_pretrained(folder)


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
    ema = Ema([model], 0.995)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 100))
    for step, say in progress("dino", steps):
        picked = torch.randint(len(images), (batch,))
        shown = to_unit(images[picked.numpy()])
        views = torch.cat([augment(shown), augment(shown)])
        token = model(pixel_values=views).pooler_output
        one, two = functional.normalize(head(token), dim=-1).chunk(2)
        near, far = functional.normalize(token, dim=-1).chunk(2)
        loss = same_scene_loss(one, two) + 0.5 * same_scene_loss(near, far)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        if (step + 1) % 50 == 0:
            say(f"loss {loss.item():.3f}")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(ema.average[0], folder)
