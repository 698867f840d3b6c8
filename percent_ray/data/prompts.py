"""Prompt files, and the order in which a run goes through them."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from percent_ray.data import lines
from percent_ray.flow.noise import generator
from percent_ray.recipe import tree
from percent_ray.recipe.paths import locate_prompts
from percent_ray.scorers import geneval_record
from percent_ray.types import Prompt

BROKEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories that a prompt has nothing of: control, surrogate, line and paragraph."""


def read_prompts(
    path: Path | str, *, judges: Mapping[str, tree.Scorer] = MappingProxyType({})
) -> list[Prompt]:
    """The prompts of a file, blank lines left out. `judges` are the scorers that are to score their
    pictures, by name: a geneval needs a record of each prompt.

    `.txt`: a prompt a line. `.jsonl`: an object a line with `prompt` (GenEval's form) or `text`;
    its other keys are the prompt's metadata.
    UTF-8, with a byte order mark or without. Raises ValueError with file and line for a bad line,
    and for a file that is not there, of another encoding, or without prompts.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: prompts are read from .txt or .jsonl files")
    if not path.is_file():
        raise ValueError(f"{path}: no such file of prompts")
    parse = _parse_json if path.suffix == ".jsonl" else _prompt
    asks = {
        name: geneval_record.vocabulary(settings.path)
        for name, settings in judges.items()
        if (settings.kind or name) == "geneval"
    }
    prompts: list[Prompt] = []
    for number, line in lines.numbered(path):
        try:
            prompt = parse(line)
            for name, known in asks.items():
                _ask(name, prompt, known)
            prompts.append(prompt)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not prompts:
        raise ValueError(f"{path}: no prompts in it")
    return prompts


def of_recipe(recipe: tree.Recipe) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of a run, and those of its probes. Raises as `read_prompts` does, for either."""
    judges = {name: recipe.scorers[name] for name in recipe.scored}
    prompts = read_prompts(locate_prompts(recipe.data.prompts), judges=judges)
    path, most = recipe.data.probe_prompts, recipe.monitor.probe_groups
    probes = read_prompts(locate_prompts(path), judges=judges) if path else prompts
    return prompts, probes[:most]


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of prompts in their order, with all that their lines say."""
    said = [[prompt.text, dict(prompt.metadata or {})] for prompt in prompts]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


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


def _prompt(text: str, metadata: dict[str, Any] | None = None) -> Prompt:
    """A prompt in one line. Raises ValueError for characters that break the lines of logs, end
    strings of C or cannot be written."""
    text = re.sub(r"[\t\r\n]+", " ", text).strip()
    if bad := [letter for letter in text if unicodedata.category(letter) in BROKEN]:
        raise ValueError(f"has the character U+{ord(bad[0]):04X}; take it out")
    return Prompt(text, metadata)


def _ask(name: str, prompt: Prompt, known: geneval_record.Vocabulary) -> None:
    try:
        geneval_record.check(prompt.metadata, known)
    except ValueError as error:
        raise ValueError(f"scorers.{name}: {error}") from None


def _parse_json(line: str) -> Prompt:
    fields = lines.json_object(line)
    text = fields.pop("prompt", None) or fields.pop("text", None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no text under 'prompt' or 'text'")
    return _prompt(text, fields or None)
