"""UnifiedReward 2.0 behind an OpenAI-compatible chat server such as vLLM's:

    vllm serve CodeGoat24/UnifiedReward-2.0-qwen-7b --served-model-name UnifiedReward

Images go as JPEG of quality 95 at temperature 0, with the published caption line and answer lines;
the rest of the question is in our own words, so that scores may differ a little from published
ones. MIT licence.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percent_ray.scorers.base import Report
from percent_ray.scorers.remote import Server, encoded
from percent_ray.types import Prompt

ENCODES = False
SERVED = True

DEFAULT = "UnifiedReward"
"""What the model is called at the server."""
AXES = ("Alignment", "Coherence", "Style")
LOWEST, HIGHEST = 1.0, 5.0
MOST_TOKENS = 4096
"""Of an answer, as published."""
AT_ONCE = 8
"""Requests under way: a server batches what it has."""
EXCERPT = 80
"""Characters of an answer that an error line shows."""
QUESTION = """\
Here are a text caption and a picture that was generated from it. Rate the picture on three scales \
from 1, the worst, to 5, the best; decimals are welcome.
Alignment: does it show all that the caption asks for, and as it asks for it?
Coherence: is it sound, without broken bodies, distorted objects or other flaws?
Style: does it look good, whatever the caption says?
Answer with exactly these three lines, a number in place of each letter:
Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Text Caption: [{caption}]"""


def load(
    path: str, *, served_model: str, token_env: str, timeout_s: float, device: torch.device
) -> "UnifiedReward":
    """The server at the URL `path`, such as http://localhost:8000/v1, that serves `served_model`
    (UnifiedReward where empty). `device` is not used: the model is elsewhere."""
    server = Server(path, token_env=token_env, timeout_s=timeout_s)
    return UnifiedReward(server, served_model or DEFAULT)


class UnifiedReward:
    """A `Scorer` (scorers/base.py). It cannot encode."""

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model

    def score(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]
    ) -> Float32[Tensor, " N"]:
        """Mean of the three scores, 1 to 5. One request an image, a few at a time.

        Raises ValueError as `Server.ask` does, and for an answer that cannot be read.
        """
        with ThreadPoolExecutor(AT_ONCE) as threads:
            means = list(threads.map(self._mean, images, prompts))
        return torch.tensor(means, dtype=torch.float32)

    def report(self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Report:
        """The same as `score`."""
        unit = "mean of alignment, coherence and style, 1 to 5"
        return Report(self.score(images, prompts), unit)

    def encode(self, images: UInt8[Tensor, "N 3 H W"]) -> Float32[Tensor, "N D"]:
        """Always raises ValueError."""
        raise ValueError("a unifiedreward only scores; leave it out of spaces")

    def describe(self) -> str:
        """Where the server is, and what it is asked for."""
        return f"{self._model} at {self._server.describe()}"

    def _mean(self, image: UInt8[Tensor, "3 H W"], prompt: Prompt) -> float:
        picture = f"data:image/jpeg;base64,{encoded(image, 'JPEG', quality=95)}"
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": QUESTION.format(caption=prompt.text)},
        ]
        answer = self._server.ask(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": MOST_TOKENS,
            },
            path="/chat/completions",
        )
        return sum(read(_said(answer))) / len(AXES)


def read(text: str) -> tuple[float, ...]:
    """The scores of an answer, in the order of `AXES`: on a line of its own each, in any order and
    case, other lines around them.

    Raises ValueError where one is missing, there twice, not a single plain number, or not in 1..5.
    """
    return tuple(_axis(text, axis) for axis in AXES)


def _axis(text: str, axis: str) -> float:
    label = rf"^[ \t]*{axis} score[ \t]*\(1-5\)[ \t]*:(.*)$"
    values = [value.strip() for value in re.findall(label, text, re.IGNORECASE | re.MULTILINE)]
    if len(values) != 1:
        problem = f"{len(values)} lines `{axis} Score (1-5): NUMBER`, needs 1"
    elif not re.fullmatch(r"[+-]?\d+(\.\d+)?", values[0], re.ASCII):
        problem = f"no single number as its {axis} Score"
    elif not LOWEST <= float(values[0]) <= HIGHEST:
        problem = f"{axis} Score {values[0][:EXCERPT]}, which is not in 1 to 5"
    else:
        return float(values[0])
    said = " ".join(text.split())
    raise ValueError(f"the model's answer has {problem}: {said[:EXCERPT]!r}")


def _said(answer: Any) -> str:
    """The text of a chat completion."""
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("the server's answer is no chat completion") from None
    if not isinstance(text, str):
        raise ValueError("the server's answer is a chat completion without text")
    # A number may have been cut in two.
    if finish == "length":
        raise ValueError(f"the model's answer was cut after {MOST_TOKENS} tokens")
    return text
