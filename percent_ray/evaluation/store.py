"""What an evaluation has found so far, on disk: a file for every (row, judge, prompt).

    FOLDER/
      protocol.json                     what all rows share; prompts.jsonl: the prompts in order
      rows/ROW/row.json                 what the row is
      rows/ROW/judged/JUDGE/00012.safetensors       scores and features of prompt 12's pictures
      rows/ROW/pictures/00012/003.png   with `keep`; of the first prompts rows/ROW/strips/00012.png

Files appear whole or not at all, and one process writes them, so that whatever ends it, the same
command finds what is done and does the rest.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from percent_ray import files
from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.quality import Asked, Judged, Judgement, check
from percent_ray.recipe.errors import first_line, short
from percent_ray.recipe.paths import expanded
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt

FORMAT = 1
"""Raise it where the meaning of what is stored changes."""
SHOWN = 8
"""Prompts of which a strip of pictures is kept, whatever `keep` is."""
VALUES, FEATURES, FAILED = "values", "features", "failed "
"""Tensors of a judge's file; the last is the start of a name."""


class Store:
    """The folder of one evaluation."""

    def __init__(self, folder: Path, *, images: int) -> None:
        """`images` are the pictures of a prompt."""
        self.folder = folder
        self._images = images

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, this process alone writes to the folder. Raises ValueError where another does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"another evaluation is writing to {self.folder}; wait for it, or set --folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def claim(self, protocol: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Begin, or go on with, an evaluation under `protocol`. Raises ValueError where the folder
        has one under another."""
        lines = [json.dumps({"prompt": p.text, **(p.metadata or {})}) for p in prompts]
        text = "\n".join(lines) + "\n"
        path = self.folder / "prompts.jsonl"
        if path.is_file() and path.read_bytes() != text.encode():
            with _whole(path, same=True):
                read_prompts(path)
            raise ValueError(f"{self.folder} has an evaluation of other prompts; set --folder")
        _claim(self.folder / "protocol.json", {"format": FORMAT, **protocol})
        files.write(path, text)

    def row(self, name: str) -> "RowStore":
        """Of the row whose folder has that name."""
        return RowStore(self.folder / "rows" / name, self._images)


@dataclass(frozen=True, slots=True)
class RowStore:
    """The folder of one row."""

    folder: Path
    images: int
    """Pictures of a prompt."""

    def claim(self, label: str, identity: Mapping[str, Any]) -> None:
        """Raises ValueError where the folder's row is another, by what its pictures depend on."""
        _claim(self.folder / "row.json", {"label": label, **identity})

    def claim_judge(self, name: str, identity: Mapping[str, Any]) -> None:
        """The same of one judge."""
        _claim(self.folder / "judged" / name / "judge.json", identity)

    def has(self, judge: str, number: int) -> bool:
        """Whether a judge's word on the pictures of prompt `number` is there."""
        return self.judged_file(judge, number).is_file()

    def put(self, judge: str, number: int, said: Judgement) -> None:
        """Keep a judge's word."""
        tensors: dict[str, Tensor] = {}
        about: dict[str, str] = {}
        if said.report is not None:
            tensors[VALUES] = said.report.values.float().contiguous()
            about = {"unit": said.report.unit, "tasks": json.dumps(said.report.tasks)}
            tensors |= {f"{FAILED}{name}": v for name, v in said.report.failures.items()}
        if said.features is not None:
            tensors[FEATURES] = said.features.float().contiguous()
        files.write(self.judged_file(judge, number), save(tensors, metadata=about))

    def get(self, judge: str, number: int, asked: Asked) -> Judgement:
        """A judge's word. Raises ValueError that names a file that is damaged, or does not hold
        what was asked."""
        path = self.judged_file(judge, number)
        with _whole(path):
            said = _read(path)
            check(said, asked, images=self.images)
        return said

    def judged(self, judges: Mapping[str, Asked], prompts: int) -> "JudgedPrompts":
        """What is there of all prompts, in order, read as it is gone through. `judges` by name,
        with what they were asked."""
        return JudgedPrompts(self, judges, prompts)

    def pictures(self, number: int) -> list[Path]:
        """The kept pictures of a prompt, in order; empty where they were not kept."""
        return sorted(self._pictures(number).glob("*.png"))

    def put_pictures(self, number: int, pngs: Sequence[bytes]) -> None:
        """Keep pictures, as PNG files."""
        folder = self._pictures(number)
        partial = folder.with_name(f".partial-{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for image, contents in enumerate(pngs):
            (partial / f"{image:03d}.png").write_bytes(contents)
        partial.rename(folder)

    def strip(self, number: int) -> Path:
        """The small pictures of one of the first prompts, side by side."""
        return self.folder / "strips" / f"{number:05d}.png"

    def put_strip(self, number: int, contents: bytes) -> None:
        files.write(self.strip(number), contents)

    def judged_file(self, judge: str, number: int) -> Path:
        """Of a judge's word on the pictures of prompt `number`."""
        return self.folder / "judged" / judge / f"{number:05d}.safetensors"

    def _pictures(self, number: int) -> Path:
        return self.folder / "pictures" / f"{number:05d}"


@dataclass(frozen=True, slots=True)
class JudgedPrompts:
    """A collection of `Judged`, one a prompt, that holds none of them in memory. What a judge has
    not said of a prompt is left out of that prompt's."""

    store: RowStore
    judges: Mapping[str, Asked]
    prompts: int

    def __len__(self) -> int:
        return self.prompts

    def __iter__(self) -> Iterator[Judged]:
        first: dict[str, tuple[int, Path]] = {}
        for number in range(self.prompts):
            there = {n: asked for n, asked in self.judges.items() if self.store.has(n, number)}
            said = {name: self.store.get(name, number, asked) for name, asked in there.items()}
            for name, judgement in said.items():
                if judgement.features is None:
                    continue
                path, width = self.store.judged_file(name, number), judgement.features.shape[1]
                before, other = first.setdefault(name, (width, path))
                if width != before:
                    raise ValueError(
                        f"{path} or {other} is damaged (features of length {width} and {before}); "
                        "delete both and run this again"
                    )
            yield Judged.of(said)

    def __contains__(self, item: object) -> bool:
        return any(item is judged for judged in self)


def _claim(path: Path, wanted: Mapping[str, Any]) -> None:
    """Write what a folder is for, or find it written. Raises ValueError that names what differs."""
    if not path.is_file():
        files.write(path, json.dumps(wanted, indent=1))
        return
    with _whole(path, same=True):
        then = json.loads(path.read_bytes().decode())
        if not isinstance(then, dict):
            raise ValueError(f"holds {short(then)}, needs an object")
    now = json.loads(json.dumps(wanted))
    if then == now:
        return
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    was, now = ({key: each.get(key) for key in keys} for each in (then, now))
    raise ValueError(
        f"{path.parent} is of another evaluation: {', '.join(keys)} was {_short(was)}, now "
        f"{_short(now)}; set --folder to another one, or delete {path.parent}"
    )


@contextmanager
def _whole(path: Path, *, same: bool = False) -> Iterator[None]:
    """Inside, whatever cannot be read of a file becomes a ValueError in one line with the remedy.
    `same`: with the file goes what it says of those beside it."""
    try:
        yield
    except (ValueError, SafetensorError, RecursionError) as error:
        again = " with the same settings" if same else ""
        why = first_line(error).removeprefix(f"{path}:").strip()
        if isinstance(error, RecursionError):
            why = "too many levels"
        if not path.stat().st_size:
            why = "empty"
        raise ValueError(
            f"{path} is damaged ({why}); delete it and run this again{again}"
        ) from None


def _read(path: Path) -> Judgement:
    """A judge's file. Raises ValueError and SafetensorError."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}, needs torch.float32")
    if VALUES not in tensors:
        return Judgement(None, tensors.get(FEATURES))
    if missing := {"unit", "tasks"} - about.keys():
        raise ValueError(f"no {' and no '.join(sorted(missing))} of the values")
    tasks = json.loads(about["tasks"])
    if tasks is not None and not (
        isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)
    ):
        raise ValueError(f"tasks are {short(tasks)}, need names or null")
    failures = {n.removeprefix(FAILED): v for n, v in tensors.items() if n.startswith(FAILED)}
    report = Report(tensors[VALUES], about["unit"], tuple(tasks) if tasks else None, failures)
    return Judgement(report, tensors.get(FEATURES))


def _short(values: Mapping[str, Any], most: int = 120) -> str:
    text = ", ".join(json.dumps(value) for value in values.values())
    return text if len(text) <= most else f"{text[:most]}..."


def stamps(path: str) -> dict[str, list[int]]:
    """Size and time of every file of a folder or of one file; empty of a hub id, of no path and of
    the embedded world's, which are this version's."""
    if not path or path.startswith("shapes/"):
        return {}
    place = expanded(path)
    found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    stats = {p.relative_to(place).as_posix(): p.stat() for p in found}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
