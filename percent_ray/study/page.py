"""The page that annotators see, one HTML file, and the key that says which side is which.

What the page shows of a pair is its prompt and its pictures, and its source holds no more: pictures
are decoded, brought to one size and encoded anew, so that neither names nor metadata nor
resolutions of the files are left, and the study's id is a hash of what is shown.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from percent_ray.data.prompts import read_prompts
from percent_ray.flow.noise import generator
from percent_ray.pages.page import render
from percent_ray.study.records import KEY, Key, KeyPair, KeyRow, write_key
from percent_ray.study.rows import Row, find
from percent_ray.types import Prompt

PAGE = "study.html"
QUALITY = 90
"""Of WebP. Both sides are encoded alike."""
EXACT = 128
"""Pixels: smaller pictures are encoded without loss and shown with sharp pixels, since lossy WebP
halves the resolution of colours."""
LEAST = {"pairs": 1, "images": 2, "size": 16}
"""Of a study's numbers; one picture has no diversity."""


@dataclass(frozen=True, slots=True)
class Design:
    """What a study shows, as it is asked for."""

    pairs: int = 20
    images: int = 8
    """Of a prompt, on each side."""
    seed: int = 0
    size: int = 384
    """Pixels of a picture's longest side, at most."""
    consent: str = ""
    """A line that annotators must agree to, where it is not empty."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} needs {least} or more, is {getattr(self, name)}")


def make(
    name_a: str, name_b: str, design: Design, *, evaluation: Path, folder: Path | None
) -> list[str]:
    """Write the page and the key of a study of two rows, each named by label, slug or folder, into
    `folder`, which is user_study/ID of the evaluation where it is None; returns what to say of it.

    Raises ValueError for too few prompts with enough pictures, for pictures that cannot be read,
    and for a folder that holds the key of another study.
    """
    row_a, row_b = find(name_a, evaluation), find(name_b, evaluation)
    if row_a.folder.resolve() == row_b.folder.resolve():
        raise ValueError(f"{name_a} and {name_b} are one and the same row, {row_a.folder}")
    prompts = read_prompts(evaluation / "prompts.jsonl")
    usable = _usable(row_a, row_b, prompts, design)
    pairs = _draw(usable, prompts, design)
    shown, size = _encode(pairs, row_a, row_b, design)
    key = Key(
        study=hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16],
        row_a=KeyRow(label=row_a.label, folder=str(row_a.folder)),
        row_b=KeyRow(label=row_b.label, folder=str(row_b.folder)),
        seed=design.seed,
        images=design.images,
        pairs=pairs,
    )
    folder = folder or evaluation / "user_study" / key.study
    folder.mkdir(parents=True, exist_ok=True)
    write_key(key, folder / KEY)
    page = folder / PAGE
    page.write_text(_render(key.study, shown, size, design), encoding="utf-8")
    return [
        *_ignored(row_a, row_b),
        f"{row_a.label} (A) against {row_b.label} (B): {design.pairs} of the {len(usable)} prompts "
        f"that both have with {design.images} pictures or more, drawn by seed {design.seed}",
        f"page for annotators: {page}  {page.stat().st_size / 1e6:.1f} MB, "
        f"{design.pairs} pairs of 2 x {design.images} pictures of {size} px",
        f"key, for nobody but you: {folder / KEY}",
        f"next: python jobs/user_study.py count ANSWERS/*.json --key {folder / KEY}",
    ]


def _ignored(*rows: Row) -> list[str]:
    return [
        f"{row.folder / 'pictures'}: {row.ignored} entries of other names than 00012/003.png are "
        "left out"
        for row in rows
        if row.ignored
    ]


def _usable(row_a: Row, row_b: Row, prompts: Sequence[Prompt], design: Design) -> list[int]:
    """Prompts of which both rows have enough pictures, in order."""
    for row in (row_a, row_b):
        if max(row.pictures) >= len(prompts):
            raise ValueError(
                f"{row.folder} has pictures of prompt {max(row.pictures)}, and prompts.jsonl has "
                f"{len(prompts)} prompts: they are of different evaluations"
            )
    enough = [
        {prompt for prompt, files in row.pictures.items() if len(files) >= design.images}
        for row in (row_a, row_b)
    ]
    usable = sorted(enough[0] & enough[1])
    if len(usable) < design.pairs:
        raise ValueError(
            f"--pairs {design.pairs} of --images {design.images}: {row_a.label} has so many "
            f"pictures of {len(enough[0])} prompts, {row_b.label} of {len(enough[1])}, both of "
            f"{len(usable)}; set fewer pairs or images, or evaluate more of them with --keep"
        )
    return usable


def _draw(usable: Sequence[int], prompts: Sequence[Prompt], design: Design) -> tuple[KeyPair, ...]:
    """Which prompts, in which order, and on which side row A stands: as often on either, where the
    number of pairs is even."""
    order = torch.randperm(len(usable), generator=generator("study prompts", design.seed))
    source = generator("study sides", design.seed)
    sides = torch.randperm(2 * ((design.pairs + 1) // 2), generator=source)
    return tuple(
        KeyPair(
            pair=number,
            prompt=usable[place],
            text=prompts[usable[place]].text,
            set_1="A" if side % 2 else "B",
        )
        for number, (place, side) in enumerate(
            zip(order[: design.pairs].tolist(), sides[: design.pairs].tolist(), strict=True), 1
        )
    )


def _encode(
    pairs: Sequence[KeyPair], row_a: Row, row_b: Row, design: Design
) -> tuple[Sequence[Mapping[str, Any]], int]:
    """What the page shows of every pair, {"prompt", "sets": [[data URI of a picture, ...] x 2]},
    and the pixels of a picture's longest side."""
    from rich.console import Console
    from rich.progress import track

    files = [
        [
            row.pictures[pair.prompt][: design.images]
            for row in ((row_a, row_b) if pair.set_1 == "A" else (row_b, row_a))
        ]
        for pair in pairs
    ]
    longest = max(_longest_side(path) for sets in files for paths in sets for path in paths)
    size = min(design.size, longest)
    shown = [
        {
            "prompt": pair.text,
            "sets": [[_data_uri(path, size) for path in paths] for paths in sets],
        }
        for pair, sets in track(
            list(zip(pairs, files, strict=True)),
            "encoding the pictures",
            console=Console(stderr=True),
            transient=True,
        )
    ]
    return shown, size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError):  # how Pillow complains of a damaged PNG
        raise ValueError(f"{path} cannot be read as a picture") from None


def _longest_side(path: Path) -> int:
    with _opened(path) as picture:
        return max(picture.size)


def _data_uri(path: Path, size: int) -> str:
    """The picture's pixels and nothing else of its file."""
    with _opened(path) as file:
        picture = file.convert("RGB")
    picture.info.clear()
    scale = size / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    encoded = io.BytesIO()
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    picture.save(encoded, "WEBP", quality=QUALITY, lossless=size < EXACT)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _render(study: str, shown: Sequence[Mapping[str, Any]], size: int, design: Design) -> str:
    return render(
        Path(__file__).with_name("study.html.jinja"),
        data={"study": study, "pairs": shown},
        pairs=design.pairs,
        images=design.images,
        consent=design.consent,
        sharp=size < EXACT,
    )
