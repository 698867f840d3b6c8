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

from jobs.pretrain_shapes.common import Rates, fit, to_unit
from jobs.pretrain_shapes.text import build_tokenizer, text_config
from jobs.pretrain_shapes.views import augment
from percent_ray.scorers.geneval import judge
from percent_ray.shapes import scenes

RECORDS: Final = tuple(record for task in scenes.TASKS for record in scenes.all_metadata(task))
"""Every caption there is: the contrast of the image side is with all of them."""
MAX_SCALE: Final = float(np.log(100.0))
SCENE_TEMPERATURE: Final = 0.1
VISION: Final[dict[str, Any]] = dict(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=scenes.SIZE, patch_size=4
)
"""The transformer of pictures, in CLIP and in DINOv2."""
RATES: Final = Rates(lr=1e-3, weight_decay=0.05, decay=0.995, beta2=0.98)


def build() -> CLIPModel:
    """An untrained two-tower model: 32x32 pictures in patches of 4, captions of 12 tokens."""
    vision = CLIPVisionConfig(**VISION, intermediate_size=256, projection_dim=64)
    text = text_config(64, layers=2)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )


def image_processor(kind: type[Any]) -> Any:
    """Pixels to -1..1 at 32x32, in the format of ``kind``."""
    return kind(
        size={"shortest_edge": scenes.SIZE},
        crop_size={"height": scenes.SIZE, "width": scenes.SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the model in float16 and its processor."""
    half = build()
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    processor = image_processor(CLIPImageProcessor)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    # transformers 5 writes processor_config.json alone; AutoImageProcessor and older readers
    # look for the image processor's own file.
    processor.save_pretrained(folder)


def all_captions(tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids of RECORDS' captions, int64 [M, 12]."""
    prompts = [record["prompt"] for record in RECORDS]
    return tokenizer(prompts, padding=True, return_tensors="pt").input_ids


def true_detections(scene: scenes.Scene) -> dict[str, list[dict[str, Any]]]:
    """What a perfect detector says of a scene."""
    detections: dict[str, list[dict[str, Any]]] = {shape: [] for shape in scenes.SHAPES}
    for item in scene.items:
        box = [item.x - item.radius, item.y - item.radius]
        box += [item.x + item.radius, item.y + item.radius]
        detections[item.shape].append({"box": box, "score": 1.0, "color": item.color})
    return detections


def truth(drawn: list[scenes.Scene]) -> NDArray[np.bool_]:
    """Which captions are true of which scenes, bool [N, M], by GenEval's rules."""
    table = np.zeros((len(drawn), len(RECORDS)), bool)
    for row, scene in zip(table, drawn, strict=True):
        detections = true_detections(scene)
        present = {item.shape for item in scene.items}
        for column, record in enumerate(RECORDS):
            if all(entry["class"] in present for entry in record["include"]):
                row[column] = judge(detections, record)
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
    own = torch.arange(len(captions))
    others = holds[:, captions].T & (own[:, None] != own)
    by_caption = functional.cross_entropy(logits[:, captions].T.masked_fill(others, -1e4), own)
    return 0.5 * (by_picture + by_caption)


def same_scene_loss(one: Tensor, two: Tensor) -> Tensor:
    """InfoNCE between two views' unit features [B,D]: each finds its own scene in the other."""
    logits = one @ two.T / SCENE_TEMPERATURE
    own = torch.arange(len(one))
    forth, back = functional.cross_entropy(logits, own), functional.cross_entropy(logits.T, own)
    return 0.5 * (forth + back)


def train(
    folder: Path, *, seed: int, steps: int, batch: int = 48, scene_count: int = 10_000
) -> None:
    """Trains on captions and on views of the same scene; saves the averaged weights."""
    torch.manual_seed(seed)
    model = build()
    tokenizer = build_tokenizer()
    every = all_captions(tokenizer)
    images, drawn, captions = draw_set(scene_count, seed)
    holds = torch.from_numpy(truth(drawn))

    def loss(_: int) -> tuple[Tensor, str]:
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_SCALE)
        picked = torch.randint(len(images), (batch,))
        shown = to_unit(images[picked.numpy()])
        one = image_features(model, augment(shown))
        two = image_features(model, augment(shown))
        words = caption_loss(model, one, captions[picked], holds[picked], every)
        return words + 0.5 * same_scene_loss(one, two), f"of captions {words.item():.3f}"

    fit(folder.name, [model], loss, lambda means: save(means[0], tokenizer, folder), steps, RATES)


@torch.no_grad()
def retrieval(features: Tensor, again: Tensor) -> float:
    """Share of scenes whose second view is nearest to their first, of unit features [N,D]."""
    nearest = (again @ features.T).argmax(dim=1)
    return float((nearest == torch.arange(len(features))).float().mean())
