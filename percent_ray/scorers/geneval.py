"""GenEval's rules on the detections of any detector, and the scorer that applies them.

``judge`` is the official verdict of djghosh13/geneval; ``reward`` is the graded reward that
Flow-GRPO trains on, except that a position which fails counts 0 here and a half there.
Detections are ``{class: [{"box": [x0, y0, x1, y1], "score", "color"}]}``, metadata is GenEval's
record (``tag``, ``include``, ``exclude``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.recipe.paths import locate
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt

ENCODES = False

Detections = dict[str, list[dict[str, Any]]]
Metadata = dict[str, Any]
Box = dict[str, Any]

THRESHOLD: Final = 0.3
COUNTING_THRESHOLD: Final = 0.9
MAX_BOXES: Final = 16
POSITION_SLACK: Final = 0.1
FAILURES: Final = ("missing", "too many", "color", "position")
"""Too few boxes of a class, too many of it, another colour, another place; a position is looked at
where everything else is right."""


def _kept(detections: Detections, tag: str) -> Detections:
    """Boxes over the tag's threshold, the most confident first, at most 16 of a class."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept: Detections = {}
    for name, boxes in detections.items():
        confident = [box for box in boxes if box["score"] > threshold]
        kept[name] = sorted(confident, key=lambda box: -box["score"])[:MAX_BOXES]
    return kept


def relations(box: Box, anchor: Box) -> set[str]:
    """Where ``box`` lies as seen from ``anchor``: of left of, right of, above, below.

    The offset of the centres is shrunk by a tenth of the summed sizes, then divided by the
    length of the offset before shrinking.
    """
    offset: list[float] = []
    shrunk: list[float] = []
    for axis in (0, 1):
        low, high = box["box"][axis], box["box"][axis + 2]
        other_low, other_high = anchor["box"][axis], anchor["box"][axis + 2]
        distance = (low + high - other_low - other_high) / 2
        slack = POSITION_SLACK * (high - low + other_high - other_low)
        offset.append(distance)
        shrunk.append(math.copysign(max(abs(distance) - slack, 0.0), distance))
    if all(abs(part) < 1e-3 for part in shrunk):
        return set()
    dx, dy = (part / math.hypot(*offset) for part in shrunk)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def _placed(boxes: list[Box], anchors: list[Box], relation: str) -> bool:
    return all(relation in relations(box, anchor) for box in boxes for anchor in anchors)


def judge(detections: Detections, metadata: Metadata) -> bool:
    """GenEval's verdict: every ``include`` met by its most confident boxes, no ``exclude``."""
    return not failure(detections, metadata)


def failure(detections: Detections, metadata: Metadata) -> str:
    """Why the verdict is no: the first of ``FAILURES`` among all demands that are not met; "" for
    a yes."""
    kept = _kept(detections, metadata["tag"])
    groups: list[list[Box] | None] = []
    failed: set[str] = set()
    for wanted in metadata.get("include", []):
        boxes = kept.get(wanted["class"], [])[: wanted["count"]]
        unmet = _unmet(boxes, wanted, groups)
        groups.append(None if unmet else boxes)
        failed.add(unmet)
    for banned in metadata.get("exclude", []):
        if len(kept.get(banned["class"], [])) >= banned["count"]:
            failed.add("too many")
    return next((name for name in FAILURES if name in failed), "")


def _unmet(boxes: list[Box], wanted: Box, groups: list[list[Box] | None]) -> str:
    """What ``boxes`` lack of one demand; ``groups`` has the boxes of those before it."""
    count = wanted["count"]
    if len(boxes) < count:
        return "missing"
    if "color" in wanted and sum(box["color"] == wanted["color"] for box in boxes) < count:
        return "color"
    if "position" in wanted:
        relation, group = wanted["position"]
        anchors = groups[group]
        if anchors is None or not _placed(boxes, anchors, relation):
            return "position"
    return ""


def _closeness(wanted: int, there: int) -> float:
    """``1 - |wanted - there| / wanted``."""
    return 1.0 - abs(wanted - there) / wanted


def reward(detections: Detections, metadata: Metadata, *, position_quirk: bool = False) -> float:
    """The graded training reward: the mean of one term a demand, over all boxes.

    The published reward server adds the 1 of a position before it looks and a 0 when it fails,
    so that a failed position scores a half; ``position_quirk`` reproduces that.
    """
    kept = _kept(detections, metadata["tag"])
    terms: list[float] = []
    groups: list[list[Box] | None] = []
    for wanted in metadata.get("include", []):
        count = wanted["count"]
        boxes = kept.get(wanted["class"], [])
        terms.append(_closeness(count, len(boxes)))
        right = len(boxes) == count
        if not right and ("color" in wanted or "position" in wanted):
            terms.append(0.0)
        elif "color" in wanted:
            painted = sum(box["color"] == wanted["color"] for box in boxes)
            terms.append(_closeness(count, painted))
            right = painted == count
        elif "position" in wanted:
            relation, group = wanted["position"]
            anchors = groups[group]
            right = anchors is not None and _placed(boxes, anchors, relation)
            terms += _position_terms(right, position_quirk)
        groups.append(boxes if right else None)
    return sum(terms) / len(terms)


def _position_terms(right: bool, quirk: bool) -> list[float]:
    if right:
        return [1.0]
    return [0.0, 1.0] if quirk else [0.0]


Detector = Callable[[UInt8[Tensor, "N 3 H W"], Sequence[Metadata]], list[Detections]]
"""Objects of N images, with an entry for every class that it knows."""


def load(
    path: str, *, color_path: str = "", verdict: float = 0.0, device: torch.device
) -> "GenEval":
    """The embedded world's detector where `path` is empty; else the Mask2Former of a folder or hub
    id, such as facebook/mask2former-swin-small-coco-instance, and the CLIPModel of `color_path`
    that names colours (folder or hub id; OpenAI's ViT-L/14 where empty). `verdict` is the share
    of the official verdict in a score."""
    if not path:
        from percent_ray.shapes.detect import detect

        if color_path:
            raise ValueError("color_path is for a detector of real pictures; set path, too")
        return GenEval(
            lambda images, _: [detect(image) for image in images],
            "GenEval's rules on shapes",
            verdict=verdict,
        )
    from percent_ray.scorers import clip
    from percent_ray.scorers.detector import ColorNamer, Mask2Former

    # Both are loaded here: a colour model that is missed later would fail every prompt with a
    # colour, and the run would train on the others alone.
    folder, colors = locate(path), locate(color_path or clip.DEFAULT)
    try:
        namer = ColorNamer(clip.Towers(colors, processor=colors, device=device))
    except ValueError as error:
        raise ValueError(f"color_path: {error}") from error
    detector = Mask2Former(folder, name_colors=namer, device=device)
    return GenEval(
        detector,
        f"GenEval's rules; {detector.description}; colours by {namer.description}",
        verdict=verdict,
    )


class GenEval:
    """A `Scorer` (scorers/base.py) of prompts that carry GenEval's metadata. It cannot encode."""

    def __init__(self, detector: Detector, description: str, *, verdict: float = 0.0) -> None:
        self._detector = detector
        self._description = description
        self._verdict = verdict
        """Share of the official verdict in a score."""

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """The training reward, on the CPU: graded, and in part the official verdict. That part pays
        for the last demand that is not met as for all of them, as the benchmark does. At most 1,
        and below 0 where a picture has more than twice the objects that were asked for.

        Raises ValueError for a prompt without metadata and for a class that the detector does not
        know, which would otherwise count as never drawn.
        """
        pairs = self._detect(images, prompts)
        share = self._verdict
        return torch.tensor(
            [
                (1 - share) * reward(found, record) + share * judge(found, record)
                for found, record in pairs
            ]
        )

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """1 where the official rules say right, else 0, by task, and why not. Raises as `score`
        does."""
        pairs = self._detect(images, prompts)
        why = [failure(detections, record) for detections, record in pairs]
        return Report(
            torch.tensor([float(not reason) for reason in why]),
            "share right by the official rules",
            tuple(record["tag"] for _, record in pairs),
            {name: torch.tensor([float(r == name) for r in why]) for name in FAILURES},
        )

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Always raises ValueError."""
        raise ValueError("a geneval only scores; leave it out of spaces")

    def describe(self) -> str:
        """What was loaded."""
        return self._description

    def _detect(
        self, images: Tensor, prompts: Sequence[Prompt]
    ) -> list[tuple[Detections, Metadata]]:
        records = [_record(prompt) for prompt in prompts]
        pairs = list(zip(self._detector(images, records), records, strict=True))
        for detections, record in pairs:
            wanted = {e["class"] for key in ("include", "exclude") for e in record.get(key, [])}
            if unknown := sorted(wanted - set(detections)):
                raise ValueError(
                    f"the detector knows no {', '.join(unknown)}; set its path to one that does"
                )
        return pairs


def _record(prompt: Prompt) -> Metadata:
    metadata: Mapping[str, Any] | None = prompt.metadata
    if not metadata or "tag" not in metadata:
        raise ValueError(
            f"prompt {prompt.text!r} has no metadata; "
            "set data.prompts to a .jsonl with tag and include"
        )
    return dict(metadata)
