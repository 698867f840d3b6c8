import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from percent_ray.monitor import journal as journals
from percent_ray.monitor import plots, probes
from percent_ray.monitor.history import History
from percent_ray.monitor.journal import Journal
from percent_ray.monitor.terminal import Terminal
from percent_ray.types import Span

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


def probe(
    folder: Path, version: int, pictures, reward=0.5, **diversity: float
) -> tuple[dict[str, float], str]:
    """The metrics of one probe, seen by a journal of its own, as after `--resume`, and what it
    says."""
    tracker = Tracker(folder)
    out = io.StringIO()
    console = Console(file=out, width=1000)
    metrics = {"reward/mean": reward}
    metrics |= {f"diversity/{name}": value for name, value in diversity.items()}
    journal = Journal(tracker, Terminal(2, console=console), alarm_share=0.5)
    journal.probe(version, metrics, [(str(i), images) for i, images in enumerate(pictures)])
    journal.draw()
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
    journal = Journal(
        Tracker(folder), Terminal(40, console=Console(file=out, width=400)), alarm_share=0.5
    )
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


def test_failed_rewards_and_steps_that_teach_nothing_are_told_then_and_at_the_end(tmp_path):
    out = io.StringIO()
    tracker = Tracker(tmp_path)
    tracker.run_id, tracker.uri = "id", "http://mlflow"
    tracker.history = History(tmp_path / "metrics.jsonl")
    journal = Journal(tracker, Terminal(20, console=Console(file=out, width=400)), alarm_share=0.5)
    journal.begin(0)
    for step in range(10):
        journal.failed(step, [{"clip": "scorers.clip: no tensor"}] * 2)
        taught = {"groups/taught": float(step not in (3, 4, 8))}
        journal.step(step, taught, [])
    said = out.getvalue()
    assert said.count("step 1: scorers.clip: no tensor (for 2 of 2 groups") == 1
    always = "scorers.clip failed for every one of 20 groups and is no part of the reward"
    assert said.count(always) == 1
    idle = [line.split(":")[0] for line in said.splitlines() if "taught nothing" in line]
    assert idle == ["step 4 taught nothing", "step 9 taught nothing"], "once a streak"
    summary = journal.summary(None, [])
    assert always in summary
    assert "3 of 10 steps taught nothing" in summary


def test_pictures_are_drawn_in_the_background(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(plots, "grid", lambda pictures, path: go.wait(10) and path.touch())
    journal = Journal(Tracker(tmp_path), quiet(), alarm_share=0.5)
    journal.probe(0, {"reward/mean": 0.5}, [("a", PICTURES[0])])
    assert journal.pictures == []
    go.set()
    journal.draw()
    assert journal.pictures == [tmp_path / "pictures" / "grid_00000.png"]


def quiet(out: io.StringIO | None = None) -> Terminal:
    return Terminal(20, console=Console(file=out or io.StringIO(), width=1000))


def test_a_run_goes_on_without_what_cannot_be_drawn_and_says_so_once(tmp_path):
    (tmp_path / "pictures").write_text("no folder")
    (tmp_path / "spans.jsonl").mkdir()
    out, tracker = io.StringIO(), Tracker(tmp_path)
    tracker.history = History(tmp_path / "metrics.jsonl")
    tracker.history.path = tmp_path / "elsewhere.jsonl"
    journal = Journal(tracker, quiet(out), alarm_share=0.5)
    for version in (0, 1):
        journal.probe(version, {"reward/mean": 0.5 + version}, [("a", PICTURES[0])])
        journal.step(version, {}, [Span("sample", "one", 0, 1)])
        journal.draw()
    said = out.getvalue()
    assert "probe after step 1:  reward 0.5000 -> 1.5000" in said
    kinds = ("the pictures' movement", "the grid", "a probe's pictures", "curves", "spans.jsonl")
    for kind in kinds:
        assert said.count(f"{kind} of {tmp_path}: not made: ") == 1, said
    assert "No such file" in said
    assert (tmp_path / "timeline.png").is_file()


def test_pictures_that_are_never_over_do_not_hold_the_end(tmp_path, monkeypatch):
    out, hung = io.StringIO(), threading.Event()
    monkeypatch.setattr(journals, "DRAW_S", 0.1)
    monkeypatch.setattr(plots, "grid", lambda pictures, path: hung.wait())
    journal = Journal(Tracker(tmp_path), quiet(out), alarm_share=0.5)
    for version in range(20):
        journal.probe(version, {}, [("a", PICTURES[0])])
    journal.draw()
    assert "were not over in 0.1 s" in out.getvalue()
    assert "32 drawings are waiting already" in out.getvalue()
    hung.set()


def test_an_alarm_when_probes_lose_their_diversity(tmp_path):
    start = {"variance_pixel": 0.02, "vendi_dino": 8.0, "vendi_clip": 2.0}
    assert "alarm" not in probe(tmp_path, 0, PICTURES, **start)[1]
    assert "alarm" not in probe(tmp_path, 10, PICTURES, **start | {"vendi_dino": 4.1})[1]
    lost = {"variance_pixel": 0.005, "vendi_dino": 3.0}
    _, said = probe(tmp_path, 20, PICTURES, **start | lost)
    first, second = (line for line in said.splitlines() if line.startswith("alarm: "))
    assert first.startswith("alarm: pixel variance of the probes is 25% of the first probe's (0.02")
    assert "Vendi(dino) of the probes is 38% of the first probe's (8 -> 3; monitor." in second


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04torn", b"no zip at all", "cut", "other"])
def test_a_damaged_first_probe_is_told_and_made_anew(tmp_path, damage):
    probe(tmp_path, 0, PICTURES)
    path = tmp_path / "pictures" / "first_probe.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    elif damage == "other":
        np.savez(path, images=PICTURES)
    else:
        path.write_bytes(damage)
    metrics, said = probe(tmp_path, 10, PICTURES + np.uint8(51))
    assert f"{path} is damaged (" in said
    assert "not made" not in said
    assert metrics["probe/movement/size"] == 0
    metrics, said = probe(tmp_path, 20, PICTURES + np.uint8(102))
    assert metrics["probe/movement/size"] == pytest.approx(0.2**2)
    assert "damaged" not in said


def test_a_resumed_run_tells_damaged_lines_of_its_metrics_and_goes_on(tmp_path):
    stepped(tmp_path, range(9))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    odd = [b'{"step": 1e999, "metrics": {}}', b"[" * 100_000, b"\xff\xfe", b"7", b'{"step": 1}']
    path.write_bytes(b"\n".join([*lines[:2], *odd, *lines[2:]]))
    out = io.StringIO()
    Journal(Tracker(tmp_path), quiet(out), alarm_share=0.5).begin(9)
    assert f"{path} is damaged: left out are lines 3, 4, 5, 6, 7\n" in out.getvalue()
