"""What can be wrong with the files of a folder, as functions that do it to one file.

The folders are made of hard links (`linked`): a file is replaced and never written to."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], Any]

GARBAGE = b"\x89\xff\x00garbage\x80" * 9
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def linked(folder: Path, to: Path) -> Path:
    """A folder of hard links to the files of another."""
    return Path(shutil.copytree(folder, to, copy_function=os.link))


def put(file: Path, content: bytes | str) -> None:
    gone(file)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def gone(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()


def changed(**keys: Any) -> Damage:
    """A JSON file with other values."""

    def change(file: Path) -> None:
        put(file, json.dumps(json.loads(file.read_text()) | keys))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def rewrite(file: Path) -> None:
        state = load_file(file)
        change(state)
        gone(file)
        save_file(state, file, metadata={"format": "pt"})

    return rewrite


def middle(value: torch.Tensor | float) -> Damage:
    """A tensor in the place of the one in the middle, or a number in it."""

    def change(state: dict[str, torch.Tensor]) -> None:
        name = sorted(state)[len(state) // 2]
        state[name] = value if isinstance(value, torch.Tensor) else torch.full_like(state[name], 0)
        if not isinstance(value, torch.Tensor):
            state[name].view(-1)[-1] = value

    return tensors(change)


def a_folder(file: Path) -> None:
    gone(file)
    file.mkdir()


def dangling(file: Path) -> None:
    gone(file)
    file.symlink_to("/nowhere/blob")


def shard(file: Path) -> None:
    """One of two, without an index."""
    file.rename(file.with_name(f"{file.stem}-00001-of-00002.safetensors"))


def half_of_two_shards(file: Path) -> None:
    other = f"{file.stem}-00002-of-00002.safetensors"
    index = json.dumps({"weight_map": {"a": other, "b": other.replace("2-of", "1-of")}})
    file.with_name(f"{file.name}.index.json").write_text(index)
    shard(file)


JSON: dict[str, Damage] = {
    "gone": gone,
    "empty": lambda file: put(file, ""),
    "torn": lambda file: put(file, file.read_bytes()[:20]),
    "garbage": lambda file: put(file, GARBAGE),
    "list": lambda file: put(file, "[]"),
    "null": lambda file: put(file, "null"),
    "without end": lambda file: put(file, "[" * 100_000),
    "a folder": a_folder,
    "dangling link": dangling,
    "pointer of LFS": lambda file: put(file, POINTER),
}
"""Of a JSON file of settings."""

WEIGHTS: dict[str, Damage] = {
    "gone": gone,
    "empty": lambda file: put(file, ""),
    "torn": lambda file: put(file, file.read_bytes()[: file.stat().st_size // 2]),
    "torn in its header": lambda file: put(file, file.read_bytes()[:100]),
    "garbage": lambda file: put(file, GARBAGE),
    "a web page": lambda file: put(file, "<html>404</html>"),
    "a folder": a_folder,
    "dangling link": dangling,
    "pointer of LFS": lambda file: put(file, POINTER),
    "a weight missing": tensors(lambda state: state.pop(sorted(state)[-1])),
    "no weight": tensors(dict.clear),
    "another shape": middle(torch.zeros(3, 5)),
    "NaN": middle(float("nan")),
    "infinite": middle(float("inf")),
    "whole numbers": tensors(lambda state: state.update({n: t.long() for n, t in state.items()})),
    "a shard without an index": shard,
    "one of two shards": half_of_two_shards,
}
"""Of a safetensors file."""
