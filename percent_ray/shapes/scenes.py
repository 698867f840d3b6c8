"""Procedural scenes of coloured shapes with GenEval-style captions and metadata.

A scene is drawn for a *metadata* record of GenEval's form (``tag``, ``include``, ``exclude``,
``prompt``): everything that the record leaves open (colours, places, sizes, background) is drawn
freely. All draws are functions of an integer seed.
"""

import colorsys
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Metadata = dict[str, Any]
"""GenEval's record: tag, include [{class, count, color?, position?}], exclude?, prompt."""

SIZE: Final = 32
SHAPES: Final = ("circle", "square", "triangle", "cross")
PLURALS: Final = {s: "crosses" if s == "cross" else f"{s}s" for s in SHAPES}
COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (225, 30, 30),
    "yellow": (240, 220, 30),
    "green": (30, 170, 50),
    "cyan": (30, 205, 220),
    "blue": (35, 60, 225),
    "purple": (190, 40, 215),
}
NUMBERS: Final = {2: "two", 3: "three"}
RELATIONS: Final = ("left of", "right of", "above", "below")
TASKS: Final = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CROSS_ARM: Final = 0.36
"""Half the width of a cross's arm, in units of its radius."""

_RADII: Final = {1: (5.0, 7.5), 2: (4.5, 6.5), 3: (4.5, 5.5)}
_GAP: Final = 1.5
_BORDER: Final = 0.5
_SUPERSAMPLE: Final = 4
_FIXED_BITS: Final = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One shape: box ``[x-radius, x+radius] x [y-radius, y+radius]`` in pixels, y downwards."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Items that do not overlap on a plain muted background (RGB, 0..255)."""

    items: tuple[Item, ...]
    background: tuple[int, int, int]


def _choose(rng: np.random.Generator, options: list[str] | tuple[str, ...], n: int) -> list[str]:
    return [options[i] for i in rng.permutation(len(options))[:n]]


def _entry(shape: str, count: int = 1, color: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": shape, "count": count}
    return entry if color is None else entry | {"color": color}


def single_object(shape: str) -> Metadata:
    """``a photo of a circle``."""
    return {
        "tag": "single_object",
        "include": [_entry(shape)],
        "prompt": f"a photo of a {shape}",
    }


def two_object(first: str, second: str) -> Metadata:
    """``a photo of a circle and a square``."""
    return {
        "tag": "two_object",
        "include": [_entry(first), _entry(second)],
        "prompt": f"a photo of a {first} and a {second}",
    }


def counting(shape: str, count: int) -> Metadata:
    """``a photo of two circles``; one more than asked is excluded."""
    return {
        "tag": "counting",
        "include": [_entry(shape, count)],
        "exclude": [_entry(shape, count + 1)],
        "prompt": f"a photo of {NUMBERS[count]} {PLURALS[shape]}",
    }


def colors(shape: str, color: str) -> Metadata:
    """``a photo of a red circle``."""
    return {
        "tag": "colors",
        "include": [_entry(shape, color=color)],
        "prompt": f"a photo of a {color} {shape}",
    }


def position(shape: str, relation: str, anchor: str) -> Metadata:
    """``a photo of a circle left of a square``; the anchor (the square) is group 0."""
    return {
        "tag": "position",
        "include": [_entry(anchor), _entry(shape) | {"position": [relation, 0]}],
        "prompt": f"a photo of a {shape} {relation} a {anchor}",
    }


def color_attr(first: str, first_color: str, second: str, second_color: str) -> Metadata:
    """``a photo of a red circle and a blue square``."""
    return {
        "tag": "color_attr",
        "include": [_entry(first, color=first_color), _entry(second, color=second_color)],
        "prompt": f"a photo of a {first_color} {first} and a {second_color} {second}",
    }


def sample_metadata(rng: np.random.Generator, task: str | None = None) -> Metadata:
    """A record of ``task``, or of a task drawn uniformly."""
    task = task or TASKS[rng.integers(len(TASKS))]
    first, second = _choose(rng, SHAPES, 2)
    color, other = _choose(rng, tuple(COLORS), 2)
    match task:
        case "single_object":
            return single_object(first)
        case "two_object":
            return two_object(first, second)
        case "counting":
            return counting(first, int(rng.integers(2, 4)))
        case "colors":
            return colors(first, color)
        case "position":
            return position(first, RELATIONS[rng.integers(len(RELATIONS))], second)
        case "color_attr":
            return color_attr(first, color, second, other)
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def all_metadata(task: str) -> list[Metadata]:
    """Every record of ``task``, in a fixed order."""
    pairs = [(a, b) for a in SHAPES for b in SHAPES if a != b]
    hues = [(a, b) for a in COLORS for b in COLORS if a != b]
    match task:
        case "single_object":
            return [single_object(s) for s in SHAPES]
        case "two_object":
            return [two_object(a, b) for a, b in pairs]
        case "counting":
            return [counting(s, n) for n in NUMBERS for s in SHAPES]
        case "colors":
            return [colors(s, c) for s in SHAPES for c in COLORS]
        case "position":
            return [position(a, r, b) for r in RELATIONS for a, b in pairs]
        case "color_attr":
            return [color_attr(a, ca, b, cb) for a, b in pairs for ca, cb in hues]
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def relations(item: Item, anchor: Item) -> set[str]:
    """Where ``item`` lies as seen from ``anchor``, by GenEval's rule on exact boxes."""
    dx, dy = item.x - anchor.x, item.y - anchor.y
    slack = 0.2 * (item.radius + anchor.radius)
    norm = max(float(np.hypot(dx, dy)), 1e-9)
    across = np.sign(dx) * max(abs(dx) - slack, 0.0) / norm
    down = np.sign(dy) * max(abs(dy) - slack, 0.0) / norm
    holds = (across < -0.5, across > 0.5, down < -0.5, down > 0.5)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def _separate(item: Item, other: Item) -> bool:
    reach = item.radius + other.radius + _GAP
    return max(abs(item.x - other.x), abs(item.y - other.y)) >= reach


def _place(
    wanted: list[tuple[str, str, str | None]], rng: np.random.Generator
) -> tuple[Item, ...] | None:
    items: list[Item] = []
    low, high = _RADII[len(wanted)]
    for shape, color, relation in wanted:
        radius = rng.uniform(low, high)
        edge = radius + _BORDER
        for x, y in rng.uniform(edge, SIZE - edge, (12, 2)):
            item = Item(shape, color, float(x), float(y), float(radius))
            if relation is not None and relations(item, items[0]) != {relation}:
                continue
            if all(_separate(item, other) for other in items):
                items.append(item)
                break
        else:
            return None
    return tuple(items)


def sample_scene(metadata: Metadata, rng: np.random.Generator) -> Scene:
    """A scene that shows ``metadata`` and nothing else.

    Objects of one scene have different colours in the tasks that name two colours; otherwise
    each unnamed colour is drawn by itself.
    """
    palette = tuple(COLORS)
    wanted: list[tuple[str, str, str | None]] = []
    for entry in metadata["include"]:
        relation = entry["position"][0] if "position" in entry else None
        for _ in range(entry["count"]):
            color = entry.get("color") or palette[rng.integers(len(palette))]
            wanted.append((entry["class"], color, relation))
    while (items := _place(wanted, rng)) is None:
        pass
    tint = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.12), rng.uniform(0.15, 0.95))
    red, green, blue = (round(255 * channel) for channel in tint)
    return Scene(items, (red, green, blue))


def _polygon(item: Item) -> NDArray[np.float64]:
    x, y, r = item.x, item.y, item.radius
    if item.shape == "triangle":
        return np.array([(x, y - r), (x + r, y + r), (x - r, y + r)])
    if item.shape == "square":
        return np.array([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)])
    a = CROSS_ARM * r
    upper = [(-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a)]
    lower = [(a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a)]
    return np.array([(x + dx, y + dy) for dx, dy in upper + lower])


def render(scene: Scene) -> NDArray[np.uint8]:
    """The scene as RGB, uint8 [3, 32, 32], antialiased by supersampling."""
    side = SIZE * _SUPERSAMPLE
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = scene.background
    # Pixel centres of the fine grid lie at half-integers; cv2 counts from the first centre.
    scale = _SUPERSAMPLE * (1 << _FIXED_BITS)
    half = 1 << (_FIXED_BITS - 1)
    for item in scene.items:
        if item.shape == "circle":
            center = (round(item.x * scale) - half, round(item.y * scale) - half)
            radius = round(item.radius * scale) - half
            cv2.circle(canvas, center, radius, COLORS[item.color], -1, cv2.LINE_8, _FIXED_BITS)
        else:
            points = np.rint(_polygon(item) * scale).astype(np.int32) - half
            cv2.fillPoly(canvas, [points], COLORS[item.color], cv2.LINE_8, _FIXED_BITS)
    small = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.transpose(2, 0, 1), np.uint8)


def example(seed: int, task: str | None = None) -> tuple[Scene, Metadata]:
    """The scene and record number ``seed``: a pure function of its arguments."""
    rng = np.random.default_rng(seed)
    metadata = sample_metadata(rng, task)
    return sample_scene(metadata, rng), metadata


def dataset(
    count: int, seed: int, task: str | None = None
) -> tuple[NDArray[np.uint8], list[Metadata]]:
    """``count`` renders, uint8 [count, 3, 32, 32], and their records; example i has seed
    ``seed * 10**7 + i``, so that sets of different seeds share no scene."""
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    records: list[Metadata] = []
    for i in range(count):
        scene, metadata = example(seed * 10_000_000 + i, task)
        images[i] = render(scene)
        records.append(metadata)
    return images, records
