"""Prompt files, and the order in which a run goes through them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from percent_ray.flow.noise import generator
from percent_ray.types import Prompt


def read_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a file, blank lines left out.

    `.txt`: a prompt a line. `.jsonl`: an object a line with `prompt` (GenEval's form) or `text`;
    its other keys are the prompt's metadata.
    Raises ValueError with file and line for a bad line, and for a file without prompts.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: prompts are read from .txt or .jsonl files")
    parse = _parse_json if path.suffix == ".jsonl" else Prompt
    prompts: list[Prompt] = []
    for number, line in _lines(path):
        try:
            prompts.append(parse(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not prompts:
        raise ValueError(f"{path}: no prompts in it")
    return prompts


class PromptStream:
    """The prompts of a run, group by group: every epoch goes through all of them in a new order.

    A pure function of (seed, group id), so that a resumed run needs only its next group id.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def prompt(self, group_id: int) -> Prompt:
        """The prompt of group 0, 1, 2, ... ValueError for a negative id: those are probes."""
        if group_id < 0:
            raise ValueError(f"group {group_id} is a probe; the stream starts at group 0")
        epoch, place = divmod(group_id, len(self._prompts))
        if epoch != self._epoch:
            source = generator("prompts", self._seed, epoch)
            self._order = torch.randperm(len(self._prompts), generator=source).tolist()
            self._epoch = epoch
        return self._prompts[self._order[place]]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if stripped := line.strip():
                yield number, stripped


def _parse_json(line: str) -> Prompt:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with 'prompt', got {line[:40]}")
    text = fields.pop("prompt", None) or fields.pop("text", None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no text under 'prompt' or 'text'")
    return Prompt(text.strip(), fields or None)
