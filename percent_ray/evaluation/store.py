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

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from percent_ray import files
from percent_ray.evaluation.quality import Judged, Judgement
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{self.folder} has an evaluation of other prompts; set --folder")
        _claim(self.folder / "protocol.json", {"format": FORMAT, **protocol})
        files.write(path, text)

    def row(self, name: str) -> "RowStore":
        """Of the row whose folder has that name."""
        return RowStore(self.folder / "rows" / name)


@dataclass(frozen=True, slots=True)
class RowStore:
    """The folder of one row."""

    folder: Path

    def claim(self, label: str, identity: Mapping[str, Any]) -> None:
        """Raises ValueError where the folder's row is another, by what its pictures depend on."""
        _claim(self.folder / "row.json", {"label": label, **identity})

    def claim_judge(self, name: str, identity: Mapping[str, Any]) -> None:
        """The same of one judge."""
        _claim(self.folder / "judged" / name / "judge.json", identity)

    def has(self, judge: str, number: int) -> bool:
        """Whether a judge's word on the pictures of prompt `number` is there."""
        return self._judged(judge, number).is_file()

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
        files.write(self._judged(judge, number), save(tensors, metadata=about))

    def get(self, judge: str, number: int) -> Judgement:
        """A judge's word. Raises ValueError that names a damaged file."""
        path = self._judged(judge, number)
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run this again") from None
        report = None
        if VALUES in tensors:
            tasks = json.loads(about["tasks"])
            failures = {
                name.removeprefix(FAILED): value
                for name, value in tensors.items()
                if name.startswith(FAILED)
            }
            report = Report(
                tensors[VALUES], about["unit"], tuple(tasks) if tasks else None, failures
            )
        return Judgement(report, tensors.get(FEATURES))

    def judged(self, judges: Sequence[str], prompts: int) -> "JudgedPrompts":
        """What is there of all prompts, in order, read as it is gone through."""
        return JudgedPrompts(self, tuple(judges), prompts)

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

    def _judged(self, judge: str, number: int) -> Path:
        return self.folder / "judged" / judge / f"{number:05d}.safetensors"

    def _pictures(self, number: int) -> Path:
        return self.folder / "pictures" / f"{number:05d}"


@dataclass(frozen=True, slots=True)
class JudgedPrompts:
    """A collection of `Judged`, one a prompt, that holds none of them in memory. What a judge has
    not said of a prompt is left out of that prompt's."""

    store: RowStore
    judges: tuple[str, ...]
    prompts: int

    def __len__(self) -> int:
        return self.prompts

    def __iter__(self) -> Iterator[Judged]:
        for number in range(self.prompts):
            there = [name for name in self.judges if self.store.has(name, number)]
            yield Judged.of({name: self.store.get(name, number) for name in there})

    def __contains__(self, item: object) -> bool:
        return any(item is judged for judged in self)


def _claim(path: Path, wanted: Mapping[str, Any]) -> None:
    """Write what a folder is for, or find it written. Raises ValueError that names what differs."""
    if not path.is_file():
        files.write(path, json.dumps(wanted, indent=1))
        return
    then, now = json.loads(path.read_text()), json.loads(json.dumps(wanted))
    if then == now:
        return
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    was, now = ({key: each.get(key) for key in keys} for each in (then, now))
    raise ValueError(
        f"{path.parent} is of another evaluation: {', '.join(keys)} was {_short(was)}, now "
        f"{_short(now)}; set --folder to another one, or delete {path.parent}"
    )


def _short(values: Mapping[str, Any], most: int = 120) -> str:
    text = ", ".join(json.dumps(value) for value in values.values())
    return text if len(text) <= most else f"{text[:most]}..."


def stamps(path: str) -> dict[str, list[int]]:
    """Size and time of every file of a folder or of one file; empty of a hub id, of no path and of
    the embedded world's, which are this version's."""
    if not path or path.startswith("shapes/"):
        return {}
    place = Path(path).expanduser()
    found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    stats = {p.relative_to(place).as_posix(): p.stat() for p in found}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
