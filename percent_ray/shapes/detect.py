"""Finds the shapes of a picture from its pixels alone: class, box, colour and a score.

The picture is split into background and saturated regions by colour; each connected region is
compared with ideal masks of all four shapes at and around its box. The score says how well the
best mask explains the region: a clean shape scores above 0.9, a blob below 0.3.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from percent_ray.shapes.scenes import COLORS, CROSS_ARM, SHAPES

Detections = dict[str, list[dict[str, Any]]]
"""{class: [{"box": [x0, y0, x1, y1], "score": float, "color": str}]}, for every class."""

FOREGROUND: Final = 60.0
"""RGB distance from the background at which a pixel belongs to an object."""
MIN_PIXELS: Final = 10
"""Regions with fewer pixels are specks; the smallest drawn shape covers about 40."""
MAX_STRETCH: Final = 1.2
"""A drawn shape may be this much wider than tall, or taller than wide, and keep its name."""
IOU_AT_ZERO: Final = 0.68
IOU_AT_ONE: Final = 0.88
"""The score is linear in the soft overlap with the best mask between these two."""

_REACH: Final = 2.0
"""Pixels by which a tried mask may exceed the first guess: shift, growth and soft edge."""

_PALETTE: Final = np.array(list(COLORS.values()), np.float32)
_NAMES: Final = tuple(COLORS)


@dataclass(frozen=True, slots=True)
class _Region:
    """A region's coverage, float32 [H,W] in 0..1, and the colour's name."""

    coverage: NDArray[np.float32]
    color: str


def _background(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The most common colour, float32 [3]: the mean of the fullest cell of a coarse histogram."""
    flat = pixels.reshape(-1, 3)
    muted = flat[np.ptp(flat, axis=1) < 80]
    flat = muted if len(muted) > len(flat) // 8 else flat
    median = np.median(flat, axis=0)
    near = flat[np.abs(flat - median).max(axis=1) < 25]
    return np.median(near if len(near) else flat, axis=0).astype(np.float32)


def _hues(pixels: NDArray[np.float32], background: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the palette colour of each pixel, int64 [H,W].

    A pixel on an edge is a mixture ``a * colour + (1 - a) * background``; it is given to the
    colour whose line through the background passes nearest.
    """
    offset = pixels - background
    direction = _PALETTE - background
    share = (offset @ direction.T) / (direction**2).sum(axis=1)
    nearest = np.clip(share, 0.0, 1.1)[..., None] * direction
    return ((offset[:, :, None] - nearest) ** 2).sum(axis=-1).argmin(axis=-1)


def _regions(pixels: NDArray[np.float32]) -> list[_Region]:
    background = _background(pixels)
    distance = np.linalg.norm(pixels - background, axis=-1)
    hues = np.where(distance > FOREGROUND, _hues(pixels, background), -1)
    found: list[_Region] = []
    for hue in range(len(_NAMES)):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (hues == hue).astype(np.uint8), connectivity=4
        )
        for label in range(1, count):
            if stats[label, cv2.CC_STAT_AREA] < MIN_PIXELS:
                continue
            core = labels == label
            others = (hues >= 0) & ~core
            rim = cv2.dilate(core.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            color = np.median(pixels[core], axis=0)
            direction = color - background
            coverage = (pixels - background) @ direction / max(float(direction @ direction), 1.0)
            coverage = np.where(rim & ~others, np.clip(coverage, 0.0, 1.0), 0.0)
            found.append(_Region(coverage.astype(np.float32), _NAMES[hue]))
    return found


def _coverage(shape: str, x: NDArray[Any], y: NDArray[Any], r: NDArray[Any]) -> NDArray[Any]:
    """How much of each pixel the ideal shape covers; x, y relative to the shape's centre."""

    def inside(distance: NDArray[Any]) -> NDArray[Any]:
        return np.clip(0.5 - distance, 0.0, 1.0)

    if shape == "circle":
        return inside(np.hypot(x, y) - r)
    if shape == "square":
        return inside(np.abs(x) - r) * inside(np.abs(y) - r)
    if shape == "triangle":
        side = (2 * np.abs(x) - y - r) / np.sqrt(5.0)
        return inside(side) * inside(y - r)
    upright = inside(np.abs(x) - CROSS_ARM * r) * inside(np.abs(y) - r)
    across = inside(np.abs(x) - r) * inside(np.abs(y) - CROSS_ARM * r)
    return np.maximum(upright, across)


@cache
def _offsets() -> NDArray[np.float32]:
    """Shifts in x and y and changes of radius to try around a first guess, float32 [M,3]."""
    shift = (-0.8, -0.4, 0.0, 0.4, 0.8)
    grow = (-1.0, -0.5, 0.0, 0.5, 1.0)
    grid = np.meshgrid(shift, shift, grow, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.float32)


def _extent(profile: NDArray[np.float32]) -> tuple[float, float]:
    """Ends of a region along an axis from its largest coverage in each row or column."""
    filled = np.flatnonzero(profile > 0.5)
    if not len(filled):
        filled = np.array([int(profile.argmax())])
    first, last = int(filled[0]), int(filled[-1])
    before = profile[first - 1] if first > 0 else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    return first - float(before), last + 1 + float(after)


def _fit(region: _Region) -> tuple[str, float, list[float]]:
    """Best class, its soft intersection over union, and the region's box."""
    mask = region.coverage
    left, right = _extent(mask.max(axis=0))
    top, bottom = _extent(mask.max(axis=1))
    width, height = right - left, bottom - top
    stretch = np.sqrt(np.clip(width / height, 1 / MAX_STRETCH, MAX_STRETCH))
    guess = np.array([(left + right) / 2, (top + bottom) / 2, np.sqrt(width * height) / 2])
    # Nothing of the region, nor of any mask that is tried, lies outside of this window.
    reach = (guess[2] + _REACH) * np.array([stretch, 1 / stretch]) + _REACH
    across = _window(mask.max(axis=0), guess[0], reach[0])
    down = _window(mask.max(axis=1), guess[1], reach[1])
    mask = mask[down, across]
    cells = guess.astype(np.float32) + _offsets()
    ys, xs = (np.arange(part.start, part.stop, dtype=np.float32) + 0.5 for part in (down, across))
    x = (xs[None, None, :] - cells[:, 0, None, None]) / stretch
    y = (ys[None, :, None] - cells[:, 1, None, None]) * stretch
    radius = np.maximum(cells[:, 2, None, None], 1.0)
    overlaps = {
        shape: float(_soft_iou(_coverage(shape, x, y, radius), mask).max()) for shape in SHAPES
    }
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best, overlaps[best], [left, top, right, bottom]


def _window(filled: NDArray[np.float32], centre: float, reach: float) -> slice:
    """Rows or columns that are filled, or within ``reach`` of ``centre``."""
    places = np.flatnonzero(filled)
    first = min(int(places[0]), int(centre - reach))
    last = max(int(places[-1]), int(centre + reach))
    return slice(max(first, 0), min(last + 1, len(filled)))


def _soft_iou(masks: NDArray[Any], mask: NDArray[np.float32]) -> NDArray[Any]:
    total = masks.sum(axis=(1, 2)) + mask.sum()
    shared = np.minimum(masks, mask).sum(axis=(1, 2))
    return shared / (total - shared)


def detect(image: NDArray[np.uint8] | Tensor) -> Detections:
    """Objects in an RGB picture, uint8 [3,H,W]; boxes in pixels, most certain first."""
    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    if array.ndim != 3 or array.shape[0] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"detect wants one picture, uint8 [3,H,W], not {array.dtype} {list(array.shape)}"
        )
    pixels = array.transpose(1, 2, 0).astype(np.float32)
    found: Detections = {shape: [] for shape in SHAPES}
    for region in _regions(pixels):
        shape, overlap, box = _fit(region)
        score = float(np.clip((overlap - IOU_AT_ZERO) / (IOU_AT_ONE - IOU_AT_ZERO), 0.0, 1.0))
        rounded = [round(edge, 2) for edge in box]
        found[shape].append({"box": rounded, "score": round(score, 4), "color": region.color})
    for boxes in found.values():
        boxes.sort(key=lambda entry: -entry["score"])
    return found
