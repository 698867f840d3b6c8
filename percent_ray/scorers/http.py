"""Any judge behind an HTTP server: `docs/http_scorer.py` is a whole one, in 30 lines.

A batch is one POST to the URL of `path`, with a list each, in the images' order:

    {"images": [PNG file in base64], "prompts": [text], "metadata": [the prompt's record, or null]}

and the answer is `{"scores": [a finite number for each image, larger is better]}`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.scorers.base import Report
from percent_ray.scorers.remote import Server, encoded, number
from percent_ray.types import Prompt

ENCODES = False
SERVED = True


def load(path: str, *, token_env: str, timeout_s: float, device: torch.device) -> "Http":
    """The server at the URL `path`. `device` is not used: the model is elsewhere."""
    return Http(Server(path, token_env=token_env, timeout_s=timeout_s))


class Http:
    """A `Scorer` (scorers/base.py). It cannot encode."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """The server's scores as they are. Raises ValueError as `Server.ask` does, and for another
        number of scores or one that is not finite."""
        answer = self._server.ask(
            {
                "images": [encoded(image, "PNG", compress_level=1) for image in images],
                "prompts": [prompt.text for prompt in prompts],
                "metadata": [prompt.metadata and dict(prompt.metadata) for prompt in prompts],
            }
        )
        return torch.tensor(_scores(answer, len(images)), dtype=torch.float32)

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The same as `score`."""
        return Report(self.score(images, prompts), "the server's score")

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Always raises ValueError."""
        raise ValueError("an http only scores; leave it out of spaces")

    def describe(self) -> str:
        """Where the server is."""
        return f"server at {self._server.describe()}"


def _scores(answer: Any, images: int) -> list[float]:
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise ValueError("the server's answer has no list `scores`")
    if len(scores) != images:
        raise ValueError(f"the server answered {len(scores)} scores for {images} images")
    return [number(score) for score in scores]
