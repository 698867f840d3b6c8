"""The pictures of a run's probes, as they were drawn: prompts and noise are fixed, so that a place
in one file and the same place in the next differ by training alone.

A file is a PNG without loss, a row for each prompt, the prompts in its text; any viewer shows it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

KEPT = 8
"""Pictures of a prompt that are kept, at most: of 256 pixels they take about 100 kB each."""
FOLDER = "pictures"
"""In a run's folder."""
NAME = re.compile(r"probe_(\d+)\.png")


@dataclass(frozen=True)
class Pictures:
    """Of one probe."""

    step: int
    prompts: tuple[str, ...]
    images: UInt8[np.ndarray, "P K 3 h w"]


def write(run: Path, step: int, groups: Sequence[tuple[str, UInt8[np.ndarray, "K 3 h w"]]]) -> Path:
    """Keep the first pictures of every prompt in a run's folder; groups have equal sizes."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    images = np.stack([images[:KEPT] for _, images in groups])
    rows, columns, _, height, width = images.shape
    sheet = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    text = PngInfo()
    text.add_itxt("prompts", json.dumps([prompt for prompt, _ in groups]))
    text.add_itxt("columns", str(columns))
    path = run / FOLDER / f"probe_{step:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, "PNG", pnginfo=text)
    return path


def files(run: Path) -> dict[int, Path]:
    """What a run's folder has, by step, in order."""
    found = {
        int(name[1]): path
        for path in (run / FOLDER).glob("probe_*.png")
        if (name := NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read(path: Path) -> Pictures:
    """One of `files`. Raises ValueError where it is none or torn."""
    from PIL import Image

    name = NAME.fullmatch(path.name)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
            text = getattr(image, "text", {})
        prompts, columns = json.loads(text["prompts"]), int(text["columns"])
        height, width = pixels.shape[0] // len(prompts), pixels.shape[1] // columns
        cut = pixels.reshape(len(prompts), height, columns, width, 3)
    except (OSError, SyntaxError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is no picture of a probe: {error!r}") from None
    return Pictures(int(name[1]) if name else 0, tuple(prompts), cut.transpose(0, 2, 4, 1, 3))
