"""A small evaluation folder as jobs/evaluate.py leaves it with --keep: pictures of noise."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROWS = {"flow-grpo": "Flow-GRPO", "pec-dino": "PEC (DINO)"}
PROMPTS = 7


def evaluation(folder: Path, *, labels=ROWS, sizes=(16, 16), images=3) -> Path:
    """Two rows of `images` pictures of every prompt. The files carry their row in text chunks."""
    folder.mkdir()
    prompts = [json.dumps({"prompt": f"prompt {number} </script>"}) for number in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    for row, ((slug, label), size) in enumerate(zip(labels.items(), sizes, strict=True)):
        home = folder / "rows" / slug
        for prompt in range(PROMPTS):
            place = home / "pictures" / f"{prompt:05d}"
            place.mkdir(parents=True)
            for image in range(images):
                pixels = np.random.default_rng((row, prompt, image)).integers(0, 256, (8, 8, 3))
                text = PngInfo()
                text.add_text("row", label)
                picture = Image.fromarray(pixels.astype(np.uint8)).resize((size, size))
                picture.save(place / f"{image:03d}.png", pnginfo=text)
        (home / "row.json").write_text(json.dumps({"label": label}))
    return folder


def pixels_of(row: int, prompt: int, image: int) -> np.ndarray:
    """Of the picture that `evaluation` makes at 8 pixels."""
    return np.random.default_rng((row, prompt, image)).integers(0, 256, (8, 8, 3))
