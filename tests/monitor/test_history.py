import json
import math
from pathlib import Path

import pytest

from percent_ray.monitor.history import History, read


def test_every_metric_is_in_the_file_when_append_returns(tmp_path):
    history = History(tmp_path / "run" / "metrics.jsonl")
    history.append(0, {"reward/mean": 0.5, "bad": math.nan, "worse": math.inf})
    (line,) = history.path.read_text().splitlines()
    assert json.loads(line)["metrics"] == {"reward/mean": 0.5, "bad": None, "worse": None}
    got = read(history.path)
    assert got[0]["reward/mean"] == 0.5
    assert math.isnan(got[0]["bad"])


def test_lines_of_one_step_are_one_and_the_later_value_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path)
    for step, value in ((0, 1.0), (1, 2.0), (1, 3.0)):
        history.append(step, {"reward/mean": value})
    history.append(1, {"probe/reward": 4.0})
    history.close()
    assert read(path) == {0: {"reward/mean": 1.0}, 1: {"reward/mean": 3.0, "probe/reward": 4.0}}


def test_a_line_that_a_kill_tore_is_passed_over_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    History(path).append(0, {"a": 1.0})
    with path.open("a") as file:
        file.write('{"step": 1, "metr')
    History(path).append(1, {"a": 2.0})
    assert read(path) == {0: {"a": 1.0}, 1: {"a": 2.0}}


def test_a_file_that_was_deleted_is_told(tmp_path):
    history = History(tmp_path / "run" / "metrics.jsonl")
    history.append(0, {"a": 1.0})
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="it was deleted") as caught:
        history.append(1, {"a": 1.0})
    assert caught.value.filename == str(tmp_path / "run" / "metrics.jsonl")


def test_a_full_disk_names_the_file():
    history = History(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left") as caught:
        history.append(0, {"a": 1.0})
    assert caught.value.filename == "/dev/full"
