"""Pictures side by side, for a page: small ones as they are, photographs made smaller."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

SIDE = 160
"""Pixels of a picture's longer side, at most."""
CRISP = 64
"""Pictures up to this size are shown pixel by pixel: without loss, and enlarged in blocks."""
GAP = 2
"""Pixels between pictures, of `SIDE`; the same share of a small one."""


@dataclass(frozen=True)
class Strip:
    """A row of pictures under a label."""

    label: str
    content: bytes
    kind: str
    """One of `page.TYPES`."""
    columns: int
    crisp: bool
    """Whether a browser enlarges it in blocks."""


def strip(label: str, images: UInt8[np.ndarray, "K 3 h w"], *, columns: int = 0) -> Strip:
    """One strip, as wide as `columns` pictures where that is more than there are."""
    from PIL import Image

    count, _, height, width = images.shape
    crisp = max(height, width) <= CRISP
    scale = 1.0 if crisp else min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    gap = max(1, round(GAP * max(size) / SIDE))
    columns = max(columns, count)
    sheet = Image.new("RGB", (columns * (size[0] + gap) - gap, size[1]), "white")
    for column, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        sheet.paste(
            picture if crisp else picture.resize(size, Image.Resampling.LANCZOS),
            (column * (size[0] + gap), 0),
        )
    file = io.BytesIO()
    if crisp:
        sheet.save(file, "PNG", optimize=True)
    else:
        sheet.save(file, "JPEG", quality=86)
    return Strip(label, file.getvalue(), "png" if crisp else "jpg", columns, crisp)
