import pytest

from percent_ray.recipe import paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An embedded world without weights, and the working directory."""
    world = tmp_path / "world"
    for name in ("sd3", "pickscore", "clip", "dino"):
        (world / "weights" / name).mkdir(parents=True)
    (world / "prompts").mkdir()
    (world / "prompts" / "train.jsonl").write_text('{"prompt": "a red circle"}\n')
    monkeypatch.setattr(paths, "EMBEDDED", world)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here
