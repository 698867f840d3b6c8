"""The job as a user runs it, killed and gone on with, and with judges and rows that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, WIDTHS, assert_readable, opened

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "jobs" / "recipes"
ROWS = f"""
base: {RECIPES / "evaluate_shapes.yaml"}
prompts: prompts.txt
images: 3
judges: [clip]
encoders: [clip, dino]
rows:
  - {{label: base, recipe: {RECIPES / "shapes_pec.yaml"}, steps: 4}}
  - {{label: fewer steps, recipe: {RECIPES / "shapes_pec.yaml"}, steps: 2}}
  - label: pipeline
    pipeline: shapes/sd3
    dtype: float32
    steps: 3
    guidance: 1
    resolution: 32
    arguments: {{max_sequence_length: 1}}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def written(folder, rows=ROWS):
    (folder / "prompts.txt").write_text("a photo of a red circle\na photo of two squares\na cat\n")
    path = folder / "rows.yaml"
    path.write_text(rows)
    return path


def start(*arguments):
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=250)
    return process.returncode, out, err


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    code, out, err = run("--rows", written(folder), "--folder", folder / "eval")
    assert code == 0, err
    assert f"page     {folder / 'eval' / 'evaluation.html'}" in out
    return folder / "eval"


@pytest.mark.study
def test_killed_and_gone_on_with_it_is_the_straight_one(straight, tmp_path):
    """Bit for bit, and what was on disk is not done again."""
    rows, folder = written(tmp_path), tmp_path / "eval"
    process = start("--rows", rows, "--folder", folder)
    while process.poll() is None and len(stamps(folder)) < 8:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = stamps(folder)
    assert 8 <= len(before) < len(stamps(straight))
    code, _, err = run("--rows", rows, "--folder", folder, "--keep")
    assert code == 0, err
    assert {path: stamps(folder)[path] for path in before} == before
    assert (folder / "evaluation.json").read_text() == (
        (straight / "evaluation.json").read_text().replace(str(straight.parent), str(tmp_path))
    )
    kept = sorted((folder / "rows/base/pictures").rglob("*.png"))
    assert [path.name for path in kept] == 3 * ["000.png", "001.png", "002.png"]

    code, _, err = run("--rows", rows, "--folder", folder, "--seed", "7")
    assert (code, err.count("\n")) == (2, 1)
    assert "seed was 2026, now 7" in err


@pytest.mark.study
def test_kept_pictures_are_judged_by_another_encoder_and_none_is_drawn_again(tmp_path):
    call = ("--rows", written(tmp_path), "--folder", tmp_path / "eval", "--keep")
    code, _, err = run(*call)
    assert code == 0, err
    code, out, err = run(*call, "--encoders", "clip,dino,pickscore")
    assert code == 0, err
    assert "base: policy" not in out
    rows = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["rows"]
    assert "vendi/pickscore" in rows["pipeline"]["means"]


def test_a_damaged_file_is_told_before_anything_is_drawn(straight, tmp_path):
    folder = shutil.copytree(straight, tmp_path / "eval")
    damaged, gone = sorted(folder.glob("rows/base/judged/clip/*.safetensors"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    gone.unlink()
    code, out, err = run("--rows", written(tmp_path), "--folder", folder)
    assert code == 2
    assert f"{damaged} is damaged (" in err
    assert "Traceback" not in err
    assert "loading the judges" not in out
    assert not gone.exists()


def test_what_was_measured(straight):
    contents = json.loads((straight / "evaluation.json").read_text())
    assert list(contents["rows"]) == ["base", "fewer steps", "pipeline"]
    assert contents["against"] == "base"
    base, fewer, pipeline = contents["rows"].values()
    assert base["against"] == {}
    names = {"quality/clip", "vendi/clip", "vendi/dino", "variance/dino", "distance/clip"}
    assert names <= set(base["means"]) & set(pipeline["means"])
    assert "vendi/vae_centred" in base["means"]
    assert "vendi/vae" not in pipeline["means"], "its latents are its own"
    gap = fewer["means"]["vendi/dino"]["mean"] - base["means"]["vendi/dino"]["mean"]
    assert fewer["against"]["vendi/dino"]["mean"] == pytest.approx(gap)
    table = (straight / "table.csv").read_text().splitlines()
    assert table[0].startswith("row,quality/clip,quality/clip low,quality/clip high,variance/dino,")
    assert table[0].endswith("quality average,diversity average,overall")
    assert len(table) == 4
    assert len(list((straight / "grids").glob("*.png"))) == 3


@pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_reads_at_every_width(straight, browser, width):
    with opened(browser, straight / "evaluation.html", width) as page:
        assert_readable(page)
        head = page.get_by_role("button", name="vendi/​dino")
        head.click()
        values = page.locator("table").first.locator("tbody tr td:nth-child(6)")
        shown = [float(v) for v in values.evaluate_all("c => c.map(x => x.dataset.value)")]
        assert shown == sorted(shown, reverse=True)


def test_what_fails_is_said_and_the_rest_is_measured(tmp_path):
    broken = ROWS.replace("label: fewer steps, recipe", "label: fewer steps, batch_size: 2, recipe")
    broken = broken.replace("pipeline: shapes/sd3\n", f"pipeline: {tmp_path}\n")
    path = written(tmp_path, broken)
    code, _, err = run("--rows", path, "--folder", tmp_path / "eval")
    assert code == 1
    lines = err.strip().splitlines()
    assert lines[0] == "not measured:"
    assert lines[1].startswith("pipeline: loading failed on 3 of 3 prompts: ")
    assert "has no model_index.json" in lines[1]
    assert len(lines) == 2
    contents = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert list(contents["rows"]) == ["base", "fewer steps"]
