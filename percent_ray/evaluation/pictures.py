"""Pictures as PNG files: whole ones, to keep, and small ones side by side, to look at."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from percent_ray.recipe.errors import first_line

SMALL = 96
"""Pixels of the longer side of a small picture."""
ROW = 10
"""Small pictures in a row."""
GAP = 2
"""White pixels between them."""


def png(pixels: UInt8[np.ndarray, "3 H W"]) -> bytes:
    """One picture as a PNG file, lossless."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def decode(files: Sequence[bytes]) -> UInt8[np.ndarray, "K 3 H W"]:
    """Pictures of one size out of their files."""
    from PIL import Image

    opened = (Image.open(io.BytesIO(contents)).convert("RGB") for contents in files)
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in opened])


def read(paths: Sequence[Path]) -> UInt8[np.ndarray, "K 3 H W"]:
    """The kept pictures of one prompt. Raises ValueError that names one that cannot be read, and
    one of another size than the first."""
    found: list[UInt8[np.ndarray, "3 H W"]] = []
    for path in paths:
        again = f"delete {path.parent} and run jobs/evaluate.py again with --keep"
        try:
            contents = path.read_bytes()
            [picture] = decode([contents])
        except Exception as error:  # Pillow has many for a file that is torn
            # Its own line for what is no picture names an object in memory.
            why = "no picture" if "BytesIO" in str(error) else first_line(error)
            raise ValueError(f"{path} cannot be read ({why}); {again}") from None
        if found and picture.shape != found[0].shape:
            (height, width), (high, wide) = picture.shape[1:], found[0].shape[1:]
            raise ValueError(
                f"{path} is {width} x {height}, {paths[0].name} beside it {wide} x {high}; {again}"
            )
        found.append(picture)
    return np.stack(found)


def strip(pixels: UInt8[np.ndarray, "K 3 H W"]) -> bytes:
    """Pictures small and in rows of `ROW`, as one PNG file."""
    from PIL import Image

    count, _, height, width = pixels.shape
    scale = SMALL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    columns, rows = min(count, ROW), -(-count // ROW)
    sheet = Image.new(
        "RGB", (columns * (size[0] + GAP) - GAP, rows * (size[1] + GAP) - GAP), "white"
    )
    for number, image in enumerate(pixels):
        small = Image.fromarray(image.transpose(1, 2, 0)).resize(size, how)
        row, column = divmod(number, ROW)
        sheet.paste(small, (column * (size[0] + GAP), row * (size[1] + GAP)))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
