"""Trains a CLIPModel on (render, caption) pairs, contrastively."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from percent_ray.scorers.geneval import judge
from percent_ray.shapes import scenes
from percent_ray.shapes.pretrain.common import Ema, progress, to_unit, warmup_cosine
from percent_ray.shapes.pretrain.text import build_tokenizer, text_config
from percent_ray.shapes.pretrain.views import augment

RECORDS: Final = tuple(record for task in scenes.TASKS for record in scenes.all_metadata(task))
"""Every caption there is: the contrast of the image side is with all of them."""
MAX_SCALE: Final = float(np.log(100.0))
IMAGE_MEAN: Final = (0.5, 0.5, 0.5)
SCENE_TEMPERATURE: Final = 0.1


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained two-tower model: 32x32 pictures in patches of 4, captions of 12 tokens."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=scenes.SIZE,
        patch_size=4,
    )
    text = text_config(tokenizer, width=64, layers=2)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )


def image_processor() -> CLIPImageProcessor:
    """Pixels to -1..1 at 32x32, in CLIP's own format."""
    return CLIPImageProcessor(
        size={"shortest_edge": scenes.SIZE},
        crop_size={"height": scenes.SIZE, "width": scenes.SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_MEAN),
    )


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the model in float16 and its processor."""
    half = build(tokenizer)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(folder)
    # transformers 5 writes processor_config.json alone; AutoImageProcessor and older readers
    # look for the image processor's own file.
    image_processor().save_pretrained(folder)


def all_captions(tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids of RECORDS' captions, int64 [M, 12]."""
    prompts = [record["prompt"] for record in RECORDS]
    return tokenizer(prompts, padding=True, return_tensors="pt").input_ids


def true_detections(scene: scenes.Scene) -> dict[str, list[dict[str, Any]]]:
    """What a perfect detector says of a scene."""
    found: dict[str, list[dict[str, Any]]] = {shape: [] for shape in scenes.SHAPES}
    for item in scene.items:
        box = [item.x - item.radius, item.y - item.radius]
        box += [item.x + item.radius, item.y + item.radius]
        found[item.shape].append({"box": box, "score": 1.0, "color": item.color})
    return found


def truth(drawn: list[scenes.Scene]) -> NDArray[np.bool_]:
    """Which captions are true of which scenes, bool [N, M], by GenEval's rules."""
    table = np.zeros((len(drawn), len(RECORDS)), bool)
    for row, scene in zip(table, drawn, strict=True):
        found = true_detections(scene)
        present = {item.shape for item in scene.items}
        for column, record in enumerate(RECORDS):
            if all(entry["class"] in present for entry in record["include"]):
                row[column] = judge(found, record)
    return table


def draw_set(count: int, seed: int) -> tuple[NDArray[np.uint8], list[scenes.Scene], Tensor]:
    """Renders uint8 [N,3,32,32], their scenes, and the index of each one's caption, int64 [N]."""
    number = {record["prompt"]: i for i, record in enumerate(RECORDS)}
    drawn = [scenes.example(seed * 10_000_000 + i) for i in range(count)]
    images = np.stack([scenes.render(scene) for scene, _ in drawn])
    captions = torch.tensor([number[record["prompt"]] for _, record in drawn])
    return images, [scene for scene, _ in drawn], captions


def image_features(model: CLIPModel, images: Tensor) -> Tensor:
    """Unit features float32 [N,64] of pictures in -1..1."""
    pooled = model.vision_model(pixel_values=images).pooler_output
    return functional.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """Unit features float32 [N,64] of token ids."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return functional.normalize(model.text_projection(pooled), dim=-1)


def caption_loss(
    model: CLIPModel, pictures: Tensor, captions: Tensor, holds: Tensor, every: Tensor
) -> Tensor:
    """CLIP's symmetric loss on unit picture features [B,D] and captions int64 [B].

    Each caption that is true of a picture (``holds``, bool [B,M]) competes with all that are
    false of it; each picture's own caption competes among the batch's pictures, other true
    pairs left out.
    """
    logits = model.logit_scale.exp() * pictures @ text_features(model, every).T
    false = logits.masked_fill(holds, -1e4).logsumexp(dim=1, keepdim=True)
    by_picture = (functional.softplus(false - logits) * holds).sum() / holds.sum()
    columns = logits[:, captions].T
    others = holds[:, captions].T & ~torch.eye(len(captions), dtype=torch.bool)
    by_caption = functional.cross_entropy(
        columns.masked_fill(others, -1e4), torch.arange(len(captions))
    )
    return 0.5 * (by_picture + by_caption)


def same_scene_loss(one: Tensor, two: Tensor) -> Tensor:
    """InfoNCE between two views' unit features [B,D]: each finds its own scene in the other."""
    logits = one @ two.T / SCENE_TEMPERATURE
    target = torch.arange(len(one))
    return 0.5 * (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    )


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 48, scene_count: int = 10_000
) -> None:
    """Trains on captions and on views of the same scene; saves the averaged weights."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    every = all_captions(tokenizer)
    images, drawn, captions = draw_set(scene_count, seed)
    holds = torch.from_numpy(truth(drawn))
    ema = Ema([model], 0.995)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, 100))
    for step, say in progress(folder.name, steps):
        picked = torch.randint(len(images), (batch,))
        shown = to_unit(images[picked.numpy()])
        one = image_features(model, augment(shown))
        two = image_features(model, augment(shown))
        words = caption_loss(model, one, captions[picked], holds[picked], every)
        loss = words + 0.5 * same_scene_loss(one, two)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_SCALE)
        if (step + 1) % 50 == 0:
            say(f"caption loss {words.item():.3f} all {loss.item():.3f}")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(ema.average[0], tokenizer, folder)


@torch.no_grad()
def retrieval(features: Tensor, again: Tensor) -> float:
    """Share of scenes whose second view is nearest to their first, of unit features [N,D]."""
    nearest = (again @ features.T).argmax(dim=1)
    return float((nearest == torch.arange(len(features))).float().mean())
