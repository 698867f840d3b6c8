import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from percent_ray.learn.checkpoint import (
    DriverState,
    latest,
    problem,
    read_state,
    resumable,
    write_state,
    writing,
)
from percent_ray.learn.engine import check_stamp
from tests.learn.fake import fake_recipe

STATE = DriverState(version=60, shape_state={"scale": 0.5}, mlflow_run_id="abc", oldest=59)


def write(run_folder, step, *, keep=2, text="whole"):
    with writing(run_folder, step, keep=keep) as folder:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_text(text)
        (folder / "driver.json").write_text("{}")


def names(run_folder):
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def test_the_last_checkpoints_are_kept(tmp_path):
    assert latest(tmp_path) is None
    for step in (9, 10, 110):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-00000110"]
    found = latest(tmp_path)
    assert found is not None
    assert (found / "policy" / "weights").read_text() == "whole"


def test_an_exception_leaves_the_old_one(tmp_path):
    write(tmp_path, 1)

    with pytest.raises(IsADirectoryError), writing(tmp_path, 2, keep=2) as folder:
        folder.write_text("not a file")
    assert names(tmp_path) == ["step-00000001"]


def test_a_kill_before_the_rename_leaves_the_old_one(tmp_path):
    """The process dies by SIGKILL with everything written and nothing renamed."""
    write(tmp_path, 1)
    script = f"""
        import os, signal
        from pathlib import Path
        from percent_ray.learn import checkpoint
        checkpoint.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with checkpoint.writing(Path({str(tmp_path)!r}), 2, keep=2) as folder:
            (folder / "weights").write_text("new")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=os.environ)
    assert run.returncode == -signal.SIGKILL
    assert latest(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    assert len(names(tmp_path)) == 2
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_is_not_written_twice(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(
        ValueError, match=r"step-00000001 exists; resume it, or set another run\.name"
    ):
        write(tmp_path, 1)


def test_the_state_comes_back_also_with_settings_that_may_change(tmp_path):
    write_state(tmp_path, STATE, fake_recipe(tmp_path))
    other = fake_recipe(
        tmp_path, run={"steps": 7}, learner={"micro_batch": 1}, runtime={"max_staleness": 0}
    )
    assert read_state(tmp_path, other) == STATE


def test_another_recipe_is_named_field_by_field(tmp_path):
    write_state(tmp_path, STATE, fake_recipe(tmp_path))
    other = fake_recipe(
        tmp_path, learner={"lr": 0.5}, scorers={"clip": {}, "pickscore": {"weight": 2.0}}
    )
    message = (
        r"learner.lr was 0.001, is 0.5; scorers.clip.color_path was not there, is ; .*"
        r"scorers.clip.kind was not there, is ; "
        r".*; scorers.pickscore.weight was 1.0, is 2.0; set them back$"
    )
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path, other)


def test_another_format(tmp_path):
    recipe = fake_recipe(tmp_path)
    write_state(tmp_path, STATE, recipe)
    fields = json.loads((tmp_path / "driver.json").read_text())
    (tmp_path / "driver.json").write_text(json.dumps(fields | {"format": 9}))
    with pytest.raises(ValueError, match="checkpoint format 9, this version reads 4"):
        read_state(tmp_path, recipe)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", "{}", "[" * 100_000, '{"format": 4}'])
def test_a_drivers_file_that_is_none(tmp_path, text):
    (tmp_path / "driver.json").write_text(text)
    with pytest.raises(ValueError, match=r"driver\.json is damaged; remove "):
        read_state(tmp_path, fake_recipe(tmp_path))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}"])
def test_a_learners_stamp_that_is_none(tmp_path, text):
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(ValueError, match=r"engine\.json is damaged; remove "):
        check_stamp(tmp_path, stage=1, world=2)


def damage(folder, how):
    """What disks and hands do to a checkpoint."""
    file = folder / "policy" / "weights"
    if how == "torn":
        file.write_text("who")
    if how == "altered":
        file.write_text("WHOLE")
    if how == "gone":
        file.unlink()
    if how == "a folder in its place":
        file.unlink()
        file.mkdir()
    if how == "without a manifest":
        (folder / "manifest.json").unlink()
    if how == "garbage":
        (folder / "manifest.json").write_bytes(b"\xff[]")
    if how == "a list":
        (folder / "manifest.json").write_text("[1]")
    if how == "deep":
        (folder / "manifest.json").write_text("[" * 100_000)
    if how == "empty":
        (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("torn", "policy/weights has 3 bytes, 5 were written"),
        ("altered", "policy/weights is not what was written: its checksum is another"),
        ("gone", "policy/weights is missing"),
        ("a folder in its place", "policy/weights is missing"),
        ("without a manifest", "manifest.json is missing"),
        ("garbage", "manifest.json is not a manifest"),
        ("a list", "manifest.json is not a manifest"),
        ("deep", "manifest.json is not a manifest"),
        ("empty", "driver.json is not in manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, how, said):
    write(tmp_path, 1)
    write(tmp_path, 2)
    damage(tmp_path / "checkpoints" / "step-00000002", how)
    assert said in str(problem(tmp_path / "checkpoints" / "step-00000002"))
    found, [line] = resumable(tmp_path)
    assert found == tmp_path / "checkpoints" / "step-00000001"
    assert said in line
    assert "step-00000002 is passed over, and is now damaged-step-00000002" in line
    write(tmp_path, 2)
    assert resumable(tmp_path) == (tmp_path / "checkpoints" / "step-00000002", [])


def test_foreign_and_empty_folders_are_no_checkpoints(tmp_path):
    write(tmp_path, 1)
    for name in ("step-foo", "step-99999999"):
        (tmp_path / "checkpoints" / name).mkdir()
    found, lines = resumable(tmp_path)
    assert found == tmp_path / "checkpoints" / "step-00000001"
    assert [line.split("checkpoints/")[1] for line in lines] == [
        "step-foo is not a checkpoint and is left alone",
        "step-99999999/manifest.json is missing; step-99999999 is passed over, and is now "
        "damaged-step-99999999",
    ]
    damage(found, "torn")
    assert resumable(tmp_path)[0] is None


def test_a_full_disk_is_named_whatever_a_library_makes_of_it(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def no_room(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", no_room)
    monkeypatch.setattr("percent_ray.learn.checkpoint.PROBE", 1)
    with pytest.raises(OSError, match="No space left") as caught, writing(tmp_path, 2, keep=2):
        raise RuntimeError("unexpected pos 270400 vs 270292")
    assert caught.value.filename == str(tmp_path / "checkpoints" / "step-00000002")
    assert names(tmp_path) == ["step-00000001"]
