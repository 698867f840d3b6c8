import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from percent_ray.learn import checkpoint
from percent_ray.loop import Progress
from percent_ray.recipe import load as recipes
from percent_ray.recipe.tree import Recipe
from percent_ray.run import _Checkpoint, _cut, _new_folder
from percent_ray.types import Prompt


def test_a_run_says_how_many_prompts_its_tokenizers_cut():
    recipe = recipes.load(Path(__file__).parents[1] / "jobs" / "recipes" / "shapes_pec.yaml")
    short, long = Prompt("a red circle"), Prompt("a red circle and " * 5 + "a blue square")
    assert _cut(recipe, [short]) == []
    said = "of the model cuts 1 of 2 prompts at 12 tokens; the longest has 25: 'a red circle and a"
    for line, name in zip(_cut(recipe, [short, long]), ("tokenizer", "tokenizer_2"), strict=True):
        assert line.startswith(f"{name} {said}")


def test_the_event_loop_is_free_while_a_checkpoint_goes_to_disk(tmp_path, monkeypatch):
    """Its checksums take a minute where a model is large, and jobs/scale.py waits 20 s."""

    async def save(folder: Path, oldest: int) -> None:
        (folder / "policy").mkdir()
        (folder / "learner.json").write_text("{}")
        (folder / "engine.json").write_text("{}")

    slow, ticks = checkpoint.seal, []
    monkeypatch.setattr(checkpoint, "seal", lambda folder: (time.sleep(0.3), slow(folder)))
    tracker = SimpleNamespace(run_id=None, file=lambda path, name: None)
    write = _Checkpoint(Recipe(), tmp_path, SimpleNamespace(save=save), tracker, prompts="")

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        await write(Progress(4))
        ticking.cancel()

    asyncio.run(main())
    assert checkpoint.problem(checkpoint.latest(tmp_path)) is None
    assert len(ticks) > 10


def test_a_checkpoint_that_the_learner_wrote_elsewhere_is_none(tmp_path):
    """Its machine has a folder of that name, and it is another."""

    async def save(folder: Path, oldest: int) -> None:
        (tmp_path / "elsewhere" / "policy").mkdir(parents=True)

    tracker = SimpleNamespace(run_id=None, file=lambda path, name: None)
    write = _Checkpoint(Recipe(), tmp_path, SimpleNamespace(save=save), tracker, prompts="")
    with pytest.raises(ValueError, match=r"no engine\.json, learner\.json, policy: its"):
        asyncio.run(write(Progress(4)))
    assert checkpoint.latest(tmp_path) is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_folder_that_cannot_be_made_ends_at_once(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        _new_folder(tmp_path / "runs", "a")
    assert _new_folder(tmp_path / "new" / "runs", "a").name == "a"
    assert _new_folder(tmp_path / "new" / "runs", "a").name == "a-2"
