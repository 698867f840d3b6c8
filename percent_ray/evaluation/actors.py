"""What draws pictures and what judges them, each in a process of its own. No ray in here."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from percent_ray.evaluation import pictures as files
from percent_ray.evaluation.checkpoints import Checkpoint, Loader
from percent_ray.evaluation.generate import Pictures, Source
from percent_ray.evaluation.pipelines import PipelineSource
from percent_ray.evaluation.plan import Row
from percent_ray.evaluation.quality import LATENT, Asked, Judgement, judgement, of_latents
from percent_ray.models.base import best_device
from percent_ray.recipe import tree
from percent_ray.recipe.errors import first_line
from percent_ray.scorers.base import Checked, load_scorer, try_out
from percent_ray.types import Prompt

SIZE = (64, 64)
"""Of the grey picture that a judge is tried on."""


class NotLoaded(ValueError):
    """A row's model cannot be loaded: none of its prompts can be drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What comes back with pictures."""

    latents: Float32[np.ndarray, "K D"] | None
    strip: bytes
    """The pictures small and side by side, as a PNG file."""
    files: tuple[bytes, ...]
    """The pictures as PNG files, where they are kept."""
    loaded: str
    """What was loaded for it; empty where it was there."""


class Drawer:
    """Draws the pictures of any row; holds one row's model at a time."""

    def __init__(self) -> None:
        self._device = best_device()
        self._ours = Loader(self._device)
        self._row = ""
        self._source: Source | None = None

    def draw(
        self, row: Row, prompt: Prompt, number: int, *, images: int, seed: int, keep: bool
    ) -> tuple[Drawn, UInt8[np.ndarray, "K 3 H W"]]:
        """The pictures, apart so that they stay in the object store, and what comes with them.

        Raises NotLoaded where the row's model cannot be loaded, and ValueError where this prompt
        cannot be drawn; in one line.
        """
        loaded = "" if row.name == self._row else self._load(row)
        assert self._source is not None
        try:
            made = self._source.draw(prompt, number, images=images, seed=seed)
        except Exception as error:  # of a pipeline's own code; the other prompts may be drawn
            raise ValueError(first_line(error)) from error
        pixels = made.images.numpy()
        said = of_latents(made).get(LATENT)
        latents = None if said is None or said.features is None else said.features.numpy()
        kept = tuple(map(files.png, pixels)) if keep else ()
        return Drawn(latents, files.strip(pixels), kept, loaded), pixels

    def _load(self, row: Row) -> str:
        self._row, self._source = "", None  # memory for the next one
        try:
            if isinstance(row.of, Checkpoint):
                self._source = self._ours.load(row.of)
            else:
                self._ours = Loader(self._device)
                self._source = PipelineSource(row.of, device=self._device)
        except Exception as error:  # whatever a library makes of it, out of memory among it
            raise NotLoaded(first_line(error)) from error
        self._row = row.name
        return self._source.describe()


class Judging:
    """One scorer, asked for its reports, its features or both."""

    def __init__(self, name: str, settings: tree.Scorer, asked: Asked) -> None:
        self._name = name
        self._settings = settings
        self._asked = asked
        self._scorer: Checked | None = None

    def ready(self, prompt: Prompt) -> str:
        """Load it and try it on a grey picture; what was loaded. Raises ValueError, in one line."""
        scorer = load_scorer(self._name, self._settings, device=best_device())
        asked = self._asked
        try_out(scorer, prompt, scores=asked.reports, encodes=asked.encodes, size=SIZE)
        self._scorer = scorer
        return scorer.describe()

    def judge(self, pixels: UInt8[np.ndarray, "K 3 H W"], prompt: Prompt) -> Judgement:
        """Its word on the pictures of one prompt. Raises ValueError, in one line."""
        if self._scorer is None:  # its process was started again
            self.ready(prompt)
        assert self._scorer is not None
        images = torch.from_numpy(pixels.copy())  # what comes from the object store is read-only
        return judgement(self._scorer, Pictures(prompt, images), self._asked)
