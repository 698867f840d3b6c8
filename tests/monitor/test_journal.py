import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from percent_ray.monitor import probes
from percent_ray.monitor.journal import Journal
from percent_ray.monitor.terminal import Terminal

PICTURES = np.random.default_rng(0).integers(60, 120, (2, 4, 3, 8, 8), dtype=np.uint8)


class Tracker:
    """The folder and the metrics of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[int, dict[str, float]] = {}

    def metrics(self, step, values):
        self.found.setdefault(step, {}).update(values)

    def file(self, path, folder):
        assert path.is_file()


def probe(folder: Path, version: int, pictures, reward=0.5) -> tuple[dict[str, float], str]:
    """The metrics of one probe, seen by a journal of its own, as after `--resume`, and what it
    says."""
    tracker = Tracker(folder)
    out = io.StringIO()
    console = Console(file=out)
    Journal(tracker, Terminal(2, console=console)).probe(
        version, {"reward/mean": reward}, [(str(i), images) for i, images in enumerate(pictures)]
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": version, "metrics": tracker.found[version]}) + "\n")
    return tracker.found[version], out.getvalue()


def test_a_probe_says_how_its_pictures_moved_since_the_first_one(tmp_path):
    first, _ = probe(tmp_path, 0, PICTURES)
    assert first == {
        "probe/reward/mean": 0.5,
        **{f"probe/movement/{name}": 0.0 for name in ("size", "shared", "of_prompt")},
    }
    brighter, said = probe(tmp_path, 10, PICTURES + np.uint8(51), reward=0.6)
    assert "reward 0.5000 -> 0.6000" in said
    assert brighter["probe/movement/size"] == pytest.approx(0.2**2)
    assert brighter["probe/movement/shared"] == pytest.approx(1.0)
    only_one = PICTURES.copy()
    only_one[0, 0] += 51
    assert probe(tmp_path, 20, only_one)[0]["probe/movement/shared"] == pytest.approx(1 / 8)


def test_other_probes_than_before_begin_anew(tmp_path):
    probe(tmp_path, 0, PICTURES)
    metrics, said = probe(tmp_path, 10, PICTURES[:, :3], reward=0.7)
    assert metrics["probe/movement/size"] == 0
    assert "probes have other prompts or sizes now" in said
    metrics, said = probe(tmp_path, 20, PICTURES[:, :3] + np.uint8(51), reward=0.8)
    assert metrics["probe/movement/size"] == pytest.approx(0.2**2)
    assert "reward 0.7000 -> 0.8000" in said
    assert "other" not in said


def test_a_run_without_its_first_pictures_says_nothing_of_movement(tmp_path):
    assert probe(tmp_path, 10, PICTURES)[0] == {"probe/reward/mean": 0.5}


def stepped(folder: Path, steps: range, first: int = 0) -> list[str]:
    """What a journal that begins at step `first` says of steps of pure noise."""
    out = io.StringIO()
    journal = Journal(Tracker(folder), Terminal(40, console=Console(file=out, width=400)))
    journal.begin(first)
    for step in steps:
        metrics = {"signal/gradient": (-1) ** step * 0.01, "signal/noise": 1.0}
        journal.step(step, metrics, [])
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")
    return [line for line in out.getvalue().splitlines() if line.startswith("signal")]


def test_every_ten_steps_a_line_says_whether_they_were_signal(tmp_path):
    said = stepped(tmp_path, range(25))
    assert len(said) == 2
    assert all("not told from noise" in line and "over 10 steps" in line for line in said)


def test_a_resumed_run_counts_the_steps_before_its_checkpoint_and_not_those_behind(tmp_path):
    stepped(tmp_path, range(8))
    [line] = stepped(tmp_path, range(6, 10), first=6)
    assert "over 10 steps" in line


def test_a_probe_keeps_its_pictures_as_they_are(tmp_path):
    probe(tmp_path, 0, PICTURES)
    probe(tmp_path, 10, PICTURES + np.uint8(51))
    first, second = (probes.read(path) for path in probes.files(tmp_path).values())
    assert (first.step, second.step, first.prompts) == (0, 10, ("0", "1"))
    np.testing.assert_array_equal(second.images - first.images, 51)
