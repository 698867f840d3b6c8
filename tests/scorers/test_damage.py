"""Every file of the embedded world's scorers, damaged in every way, and files that `torch.save`
wrote: one line that names the part and the file."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from percent_ray.recipe.paths import EMBEDDED
from percent_ray.recipe.tree import Scorer
from percent_ray.scorers import state_file
from percent_ray.scorers.base import load_scorer
from tests import damages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return Path(shutil.copytree(EMBEDDED / "weights", tmp_path_factory.mktemp("damage") / "whole"))


def refused(load: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load()
    said = str(caught.value)
    assert "\n" not in said
    assert "; " in said, said  # and what to set
    return said


PARTS = {
    "model.safetensors": "model",
    "config.json": "model",
    "tokenizer.json": "tokenizer",
    "preprocessor_config.json": "image processor",
}
CASES = [("clip", "model.safetensors", name, damage) for name, damage in damages.WEIGHTS.items()]
CASES += [("dino", "model.safetensors", name, damage) for name, damage in damages.WEIGHTS.items()]
CASES += [
    ("clip", file, name, damage)
    for file in ("config.json", "tokenizer.json")
    for name, damage in damages.JSON.items()
]
CASES += [
    ("dino", file, name, damage)
    for file in ("config.json", "preprocessor_config.json")
    for name, damage in damages.JSON.items()
]
CASES += [
    ("pickscore", "model.safetensors", n, damages.WEIGHTS[n]) for n in ("torn", "NaN", "gone")
]
ODD: list[tuple[str, str, dict[str, Any]]] = [
    ("clip", "config.json", {"model_type": "bert"}),
    ("pickscore", "config.json", {"model_type": "dinov2"}),
    ("dino", "config.json", {"model_type": "nope"}),
    ("dino", "config.json", {"hidden_size": "x"}),
    ("dino", "config.json", {"num_attention_heads": 0}),
    ("dino", "preprocessor_config.json", {"image_mean": [float("nan")] * 3}),
    ("dino", "preprocessor_config.json", {"image_std": [0, 0, 0]}),
    ("dino", "preprocessor_config.json", {"size": "x"}),
    ("dino", "preprocessor_config.json", {"resample": 99}),
    ("dino", "preprocessor_config.json", {"image_processor_type": "Nope"}),
]
CASES += [(kind, file, str(keys), damages.changed(**keys)) for kind, file, keys in ODD]


@pytest.mark.parametrize(
    ("kind", "file", "damage"),
    [(kind, file, damage) for kind, file, _, damage in CASES],
    ids=[f"{kind} {file} {name}" for kind, file, name, _ in CASES],
)
def test_a_damaged_file_is_one_line_with_its_part_and_its_name(whole, tmp_path, kind, file, damage):
    folder = damages.linked(whole / kind, tmp_path / "scorer")
    damage(folder / file)
    scorer = Scorer(kind=kind, path=str(folder))
    said = refused(lambda: load_scorer("mine", scorer, device=CPU))
    assert said.startswith(f"scorers.mine: {PARTS[file]} of {folder}"), said
    assert Path(file).stem in said, said


@pytest.mark.parametrize("kind", ["clip", "dino", "pickscore"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damages.gone, "no folder .*; give a folder or a hub id"),
        (damages.a_folder, r"(model|image processor|tokenizer) of .*: has (no|none of) .*\.json"),
        (lambda folder: damages.put(folder, "x"), "is a weights file; give a folder or a hub id"),
    ],
)
def test_no_scorer_at_all_is_one_line(whole, tmp_path, monkeypatch, kind, damage, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = damages.linked(whole / kind, tmp_path / "scorer")
    damage(folder)
    scorer = Scorer(kind=kind, path=str(folder))
    said = refused(lambda: load_scorer("mine", scorer, device=CPU))
    assert re.search(rf"^scorers\.mine: .*{expected}", said), said


@pytest.mark.parametrize("kind", ["clip", "dino", "pickscore"])
def test_the_whole_folder_is_read(whole, kind):
    load_scorer("mine", Scorer(kind=kind, path=str(whole / kind)), device=CPU)


STATE = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
SAVED: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: damages.put(file, ""),
    "torn": lambda file: damages.put(file, file.read_bytes()[:300]),
    "garbage": lambda file: damages.put(file, damages.GARBAGE),
    "a web page": lambda file: damages.put(file, "<html>404</html>"),
    "pointer of LFS": lambda file: damages.put(file, damages.POINTER),
    "a folder": damages.a_folder,
    "dangling link": damages.dangling,
    "a list": lambda file: torch.save([1, 2], file),
    "a module": lambda file: torch.save(nn.Linear(3, 2), file),
    "no tensors": lambda file: torch.save({}, file),
    "a number": lambda file: torch.save(STATE | {"bias": 1.0}, file),
    "one missing": lambda file: torch.save({"weight": STATE["weight"]}, file),
    "another shape": lambda file: torch.save(STATE | {"bias": torch.zeros(3)}, file),
    "NaN": lambda file: torch.save(STATE | {"bias": torch.tensor([0.0, float("nan")])}, file),
    "whole numbers": lambda file: torch.save(STATE | {"bias": torch.zeros(2).long()}, file),
}


@pytest.mark.parametrize("name", ["judge.pt", "judge.safetensors"])
@pytest.mark.parametrize("damage", SAVED.values(), ids=SAVED)
def test_a_damaged_state_file_is_one_line_with_its_part_and_its_name(tmp_path, damage, name):
    file = tmp_path / name
    torch.save(STATE, file)
    damage(file)

    def load() -> None:
        found = state_file.find(str(tmp_path), name, part="judge")
        state = state_file.read(found, part="judge")
        model = lambda: nn.Linear(3, 2)  # noqa: E731
        state_file.fill(model, state, lambda n: (n, state_file.whole), where=f"judge of {found}")

    said = refused(load)
    assert said.startswith(f"judge of {tmp_path}"), said
    assert name in said


def test_a_whole_state_file_is_read(tmp_path):
    torch.save(STATE, tmp_path / "judge.pt")
    found = state_file.find(str(tmp_path), "judge.pt", part="judge")
    state = state_file.read(found, part="judge")
    filled = state_file.fill(
        lambda: nn.Linear(3, 2), state, lambda n: (n, state_file.whole), where="judge"
    )
    assert torch.equal(filled.weight, STATE["weight"])
