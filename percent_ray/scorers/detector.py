"""GenEval's detector for real pictures: Mask2Former finds COCO objects, CLIP names their colours.

The published detector is an mmdet Swin-S Mask2Former; this is transformers' port of the same family
with other weights, so that scores from it are to be reported as "GenEval-HF".
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from percent_ray.models import pretrained, weights
from percent_ray.recipe.paths import locate
from percent_ray.scorers.clip import Towers

THRESHOLD: Final = 0.3
"""Least confidence of a detection; GenEval's rules ask for more of a counting prompt."""
AT_ONCE: Final = 4
"""Pictures in one call of the detector: what 24 take at once, several GiB, a judge beside others
does not have."""
MAX_COLORED: Final = 16
"""Boxes of a class, the most confident first, whose colour is named; the rules read no more."""
COCO_TO_GENEVAL: Final = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    # As the published Mask2Formers, converted from mmdet's list, name six of COCO's classes.
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "sofa": "couch",
    "tvmonitor": "tv",
}
COLORS: Final = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
TEMPLATES: Final = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GREY: Final = 0x99
"""What the pixels around an object are painted with before its colour is named."""

Detections = dict[str, list[dict[str, Any]]]
"""{class: [{"box": [x0, y0, x1, y1], "score": float, "color": str}]} for every class that the
detector knows; "color" only where the prompt asks for one."""

NameColors = Callable[[Sequence[UInt8[Tensor, "3 h w"]], str], list[str]]
"""The colour of each crop of an object of a class."""


def classes(path: str) -> tuple[str, ...] | None:
    """GenEval's names of what the detector in a folder knows, by its config.json; None of a hub id
    and of a folder whose config has no names, which loading refuses."""
    config = Path(locate(path)) / "config.json"
    try:
        labels = json.loads(config.read_text(encoding="utf-8"))["id2label"].values()
        return tuple(sorted(str(COCO_TO_GENEVAL.get(name, name)) for name in labels))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Mask2Former:
    """A Mask2FormerForUniversalSegmentation of COCO instances, folder or hub id, with a namer of
    the colours that a prompt asks for."""

    def __init__(self, folder: str, *, name_colors: NameColors, device: torch.device) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self._processor = pretrained.image_processor(folder, part="detector's image processor")
        model = pretrained.load(
            Mask2FormerForUniversalSegmentation,
            folder,
            part="detector",
            unused=("criterion.",),  # of the training loss
            dtype=torch.float32,
        )
        self.description = pretrained.described(folder, model)
        self._model = model.requires_grad_(False).to(device)
        labels: Mapping[int, str] = model.config.id2label
        if unnamed := [name for name in labels.values() if re.fullmatch(r"(LABEL_)?\d*", name)]:
            raise ValueError(
                f"detector of {folder}: its config.json has no names for its classes "
                f"({weights.some(unnamed)} in id2label); give a folder that was trained on COCO's "
                "instances"
            )
        self._names = {number: COCO_TO_GENEVAL.get(name, name) for number, name in labels.items()}
        self._device = device
        self._name_colors = name_colors

    def __call__(
        self, images: UInt8[Tensor, "N 3 H W"], records: Sequence[Mapping[str, Any]]
    ) -> list[Detections]:
        """Objects of each image; `records` are the prompts' GenEval metadata."""
        found: list[Detections] = []
        for first in range(0, len(images), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            found += self._detect(images[some].to(self._device), records[some])
        return found

    @torch.inference_mode()
    def _detect(
        self, images: UInt8[Tensor, "n 3 H W"], records: Sequence[Mapping[str, Any]]
    ) -> list[Detections]:
        inputs = self._processor(images, return_tensors="pt", input_data_format="channels_first")
        outputs = self._model(pixel_values=inputs.pixel_values.to(self._device))
        results = self._processor.post_process_instance_segmentation(
            outputs,
            threshold=THRESHOLD,
            target_sizes=[tuple(images.shape[-2:])] * len(images),
            return_binary_maps=True,
        )
        return [
            self._detections(image, result, _colored(record))
            for image, result, record in zip(images, results, records, strict=True)
        ]

    def _detections(
        self, image: UInt8[Tensor, "3 H W"], result: Mapping[str, Any], colored: set[str]
    ) -> Detections:
        detections: Detections = {name: [] for name in self._names.values()}
        masks: dict[str, list[Bool[Tensor, "H W"]]] = {name: [] for name in detections}
        # Without a detection "segmentation" is not a stack of masks; segments_info is empty then.
        segments = sorted(enumerate(result["segments_info"]), key=lambda pair: -pair[1]["score"])
        for number, segment in segments:
            mask = result["segmentation"][number].bool()
            name = self._names[segment["label_id"]]
            detections[name].append({"box": box_of(mask), "score": float(segment["score"])})
            masks[name].append(mask)
        for name in colored & {name for name, boxes in detections.items() if boxes}:
            chosen = detections[name][:MAX_COLORED]
            crops = [
                crop(image, mask, entry["box"])
                for entry, mask in zip(chosen, masks[name], strict=False)
            ]
            for entry, color in zip(chosen, self._name_colors(crops, name), strict=True):
                entry["color"] = color
        return detections


class ColorNamer:
    """Zero-shot classifier of an object's colour on CLIP's towers; OpenAI's ViT-L/14 in GenEval."""

    def __init__(self, towers: Towers) -> None:
        self.description = towers.description
        self._towers = towers
        self._classifiers: dict[str, Tensor] = {}

    def __call__(self, crops: Sequence[UInt8[Tensor, "3 h w"]], name: str) -> list[str]:
        """The colour of each crop of an object called `name`."""
        # Cosines but for the length of each crop's features, which the best one does not depend on.
        alike = self._towers.images(crops) @ self._classifier(name).T
        return [COLORS[best] for best in alike.argmax(1).tolist()]

    def _classifier(self, name: str) -> Tensor:
        """float32 [colours, D]: the normalised mean over templates of normalised embeddings."""
        if name not in self._classifiers:
            texts = [t.format(color=color, name=name) for color in COLORS for t in TEMPLATES]
            each = torch.nn.functional.normalize(self._towers.texts(texts), dim=-1)
            mean = each.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1)
            self._classifiers[name] = torch.nn.functional.normalize(mean, dim=-1)
        return self._classifiers[name]


def box_of(mask: Bool[Tensor, "H W"]) -> list[float]:
    """[x0, y0, x1, y1] of a mask that is not empty; the ends are exclusive, as in mmdet."""
    xs, ys = mask.any(0).nonzero()[:, 0], mask.any(1).nonzero()[:, 0]
    return [float(v) for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)]


def crop(
    image: UInt8[Tensor, "3 H W"], mask: Bool[Tensor, "H W"], box: Sequence[float]
) -> UInt8[Tensor, "3 h w"]:
    """The object on grey, cut to its box."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    return torch.where(mask, image, torch.full_like(image, GREY))[:, y0:y1, x0:x1]


def _colored(record: Mapping[str, Any]) -> set[str]:
    """The classes whose colour the prompt asks for."""
    return {wanted["class"] for wanted in record.get("include", []) if "color" in wanted}
