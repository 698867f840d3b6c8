"""Two detectors' verdicts compared, and the job that prints it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import calibrate_detector
from percent_ray.evaluation import agreement
from percent_ray.evaluation.pictures import png
from percent_ray.scorers import geneval
from percent_ray.study import rows

JOB = Path(__file__).parents[2] / "jobs" / "calibrate_detector.py"


def test_kappa_is_cohens():
    """A worked example: 20 and 15 of 50 agree, either says yes to 25 and 30."""
    first = np.repeat([True, True, False, False], [20, 5, 10, 15])
    second = np.repeat([True, False, True, False], [20, 5, 10, 15])
    found = agreement.agreement(first, second)
    assert (found.pictures, found.first, found.second, found.agreed) == (50, 0.5, 0.6, 0.7)
    assert found.kappa == pytest.approx(0.4)
    assert np.isnan(agreement.agreement(first[:3], first[:3]).kappa), "one verdict throughout"
    assert agreement.agreement(first, first).kappa == 1
    with pytest.raises(ValueError, match="no pictures"):
        agreement.agreement(first[:0], first[:0])


def test_tasks_are_counted_apart():
    first = np.array([True, False, True, True])
    second = np.array([True, True, True, False])
    found = agreement.by_task(["colors", "colors", "counting", "counting"], first, second)
    assert list(found) == ["colors", "counting", agreement.ALL]
    assert [each.agreed for each in found.values()] == [0.5, 0.5, 0.5]
    assert found["colors"].second == 1.0


def test_half_of_the_scenes_are_right_and_noise_makes_the_detector_worse():
    scorer = geneval.load("", device=torch.device("cpu"))
    pairs = agreement.scenes(48, seed=1)
    images = torch.cat([image for _, image in pairs])
    prompts = [prompt for prompt, _ in pairs]
    clean, same = (scorer.report(images, prompts).values.numpy() > 0 for _ in range(2))
    assert 0.4 < clean.mean() < 0.6
    assert agreement.agreement(clean, same).kappa == 1
    kappas = [
        agreement.agreement(
            clean,
            scorer.report(agreement.noisy(images, levels, seed=2), prompts).values.numpy() > 0,
        ).kappa
        for levels in (10, 80)
    ]
    assert kappas[0] > kappas[1]
    assert torch.equal(agreement.noisy(images, 0.0, seed=2), images)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the second detector is the first one; set --second or --noise"),
        (["--noise", "5", "--row", "a"], "--evaluation and --row belong together"),
        (["--noise", "-1"], "--noise 0 to 255"),
        (["--noise", "5", "--evaluation", "gone", "--row", "a"], "gone"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, arguments, words):
    done = subprocess.run(
        [sys.executable, str(JOB), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


def kept(evaluation):
    """An evaluation of two prompts that has kept two pictures of each."""
    record = {"prompt": "a photo of a circle", "tag": "single_object"}
    evaluation.mkdir()
    (evaluation / "prompts.jsonl").write_text(2 * f"{json.dumps(record)}\n")
    for prompt in ("00000", "00001"):
        folder = evaluation / "rows" / "base" / "pictures" / prompt
        folder.mkdir(parents=True)
        for picture in ("000.png", "001.png"):
            (folder / picture).write_bytes(png(np.full((3, 8, 8), 7, np.uint8)))
    (evaluation / "rows" / "base" / "row.json").write_text('{"label": "base"}')
    return folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda contents: b"", "cannot be read (no picture)"),
        (lambda contents: b"<html>", "cannot be read (no picture)"),
        (lambda contents: contents[:50], "cannot be read ("),
        (lambda contents: contents[:-30], "cannot be read ("),
        (lambda contents: png(np.zeros((3, 4, 6), np.uint8)), "is 6 x 4, 000.png beside it 8 x 8"),
        (None, "holds no pictures"),
    ],
)
def test_damaged_pictures_are_named(tmp_path, damage, words):
    folder = kept(tmp_path / "eval")
    asked = calibrate_detector.parse(
        ["--noise", "5", "--evaluation", str(tmp_path / "eval"), "--row", "base"]
    )
    [(_, first), (_, second)] = calibrate_detector.pictures(asked)
    assert first.shape == second.shape == (2, 3, 8, 8)
    path = folder / "001.png"
    if damage is None:
        path.unlink()
        (folder / "000.png").unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are below
        list(calibrate_detector.pictures(asked))
    line = str(caught.value)
    assert line.startswith(f"{folder if damage is None else path} {words}")
    assert line.endswith("and run jobs/evaluate.py again with --keep")
    assert "\n" not in line


@pytest.mark.parametrize("contents", [b"", b"null", b"[]", b"7", b"\xff", b"[" * 200_000])
def test_a_damaged_row_is_named(tmp_path, contents):
    kept(tmp_path / "eval")
    path = tmp_path / "eval" / "rows" / "base" / "row.json"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=f"^{path} is not a row's"):
        rows.find("base", tmp_path / "eval")


def test_the_job_prints_a_line_for_each_task(tmp_path):
    done = subprocess.run(
        [sys.executable, str(JOB), "--noise", "60", "--pictures", "24"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[-7:]] == [*geneval_tasks(), agreement.ALL]
    assert "noise 60 of 255" in lines[1]


def geneval_tasks() -> list[str]:
    from percent_ray.shapes.scenes import TASKS

    return list(TASKS)
