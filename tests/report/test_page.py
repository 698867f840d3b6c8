import json
import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest

from percent_ray.report import figures, page, pictures, words
from percent_ray.report.lacking import lacking
from percent_ray.report.runs import read_all
from tests.browser import WIDTHS, assert_readable, opened
from tests.report import fabricated

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    pec = {"method": {"name": "pec"}}
    fabricated.run(home, "plain", lost=6.0)
    fabricated.run(home, "shaped", lost=0.5, **pec)
    fabricated.run(home, "large", side=256, reward="taste")
    fabricated.run(home, "bare", probed=False)
    return home


@cache
def write(home, *names):
    path = home / f"{'_'.join(names)}.html"
    lines = page.write(read_all([str(home / name) for name in names]), "python x <y>", path)
    return path, lines


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_page_of_two_runs_is_readable(browser, home, width):
    path, _ = write(home, "plain", "shaped")
    with opened(browser, path, width) as shown:
        assert_readable(shown)
        charts = shown.locator("figure.chart")
        assert charts.count() == 8
        for number in range(charts.count()):
            words = charts.nth(number).locator("figcaption").first.inner_text()
            assert words.startswith("What to look for")
            assert charts.nth(number).locator("details").count() > 0
        film = shown.locator(".film").first
        assert film.locator("img").count() == 6
        least = film.locator("img").first.bounding_box()["width"] / 8
        assert least > 45, "pixels of a picture"
        tops = {film.locator("img").nth(n).bounding_box()["x"] for n in range(6)}
        assert len(tops) == 1, "a noise is down a column"


def test_a_page_fetches_nothing_and_escapes_what_it_shows(home):
    text = write(home, "plain", "shaped")[0].read_text()
    assert "<red>" not in text
    assert "a &lt;red&gt; circle" in text
    assert "python x &lt;y&gt;" in text
    outside = re.sub(r'"data:[^"]*"', "", text)
    assert "://" not in outside
    assert not re.search(r"<(link|iframe|object|embed)\b|@import|url\(", outside)


def test_the_words_say_what_was_kept_and_who_kept_more_at_the_same_reward(home):
    _, lines = write(home, "plain", "shaped")
    text = "\n".join(lines)
    assert "plain: from step 0 to step 20 the reward of its probes (pickscore) went from" in text
    assert (
        "3.0 of 24 pictures of a prompt count as different in the eyes space (Vendi), 9.0 did: 33%"
        in text
    )
    assert "count as different: plain 3.0, shaped 8.5 in the eyes space (shaped most)." in text


@pytest.mark.parametrize("rewards", [(0.7, 0.9), (0.5, 0.4), (float("nan"), 0.6)])
def test_runs_that_never_stand_at_one_reward_are_not_compared(tmp_path, rewards):
    """One begins above where the other ends, or only falls, or has none."""
    paths = [fabricated.run(tmp_path, name) for name in "ab"]
    for path, (start, end) in zip(paths, [(0.5, 0.6), rewards], strict=True):
        history = path / "metrics.jsonl"
        lines = [json.loads(line) for line in history.read_text().splitlines()]
        for line in lines:
            if "probe/reward/mean" in line["metrics"]:
                share = line["step"] / fabricated.STEPS
                line["metrics"]["probe/reward/mean"] = start + share * (end - start)
        history.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "At the same reward" not in "\n".join(words.summary(read_all([str(p) for p in paths])))


def test_runs_that_have_kept_as_much_are_not_ranked(tmp_path):
    paths = [fabricated.run(tmp_path, n, lost=lost) for n, lost in (("a", 3.0), ("b", 3.1))]
    told = words.summary(read_all([str(path) for path in paths]))[-1]
    assert "a 6.0, b 5.9 in the eyes space (alike)" in told


def test_a_page_of_large_pictures_is_the_same_page(browser, home):
    path, _ = write(home, "large")
    text = path.read_text()
    assert "taste" in text
    assert text.count("data:image/jpeg") == 2 * 6
    with opened(browser, path, 390) as shown:
        assert_readable(shown)


def test_what_a_run_lacks_is_told_with_the_key_that_gives_it(browser, home):
    path, lines = write(home, "bare")
    assert [line for line in lines if line.startswith("not drawn")] == [
        "not drawn: Diversity at the same reward. bare: no reward on probes; set "
        "monitor.probe_every (every 20 steps, say). bare: no Vendi on probes; set "
        "monitor.probe_every (every 20 steps, say).",
        "not drawn: Figure 5: the law R = -a exp(-H) + b. bare: no perceptual entropy on probes; "
        "set monitor.probe_every (every 20 steps, say).",
        lines[-2],
    ]
    assert lines[-2].startswith("not drawn: Figure 6")
    assert lines[-1].startswith(f"report: {path}  (5 of 8 figures")
    with opened(browser, path, 1280) as shown:
        assert shown.locator("h2").filter(has_text="Figure 5").count() == 1
        text = shown.locator("body").inner_text()
        assert "bare has no pictures of probes: set monitor.probe_every" in text
        assert_readable(shown)


def test_the_key_that_gives_a_figure_is_that_of_the_run(tmp_path):
    """A run without diversity, and one of the forward process, as far as their first steps."""
    unwatched = fabricated.run(tmp_path, "unwatched", monitor={"spaces": []})
    forward = fabricated.run(tmp_path, "forward", learner={"process": "forward"})
    for path, gone in ((unwatched, ("vendi", "variance")), (forward, ("entropy/",))):
        file = path / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            kept = {k: v for k, v in line["metrics"].items() if not any(g in k for g in gone)}
            line["metrics"] = kept
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = ["diversity/vendi_", "entropy/policy", "entropy/perceptual_", "advantage/p_max"]
    assert lacking(read_all([str(unwatched), str(forward)]), wanted) == [
        "unwatched: no Vendi; set monitor.spaces, e.g. [dino, clip].",
        *(
            f"forward: no {what} entropy; the forward process has no transitions; set "
            "learner.process reverse to have it."
            for what in ("policy", "perceptual")
        ),
    ]
    shown = {figure.title: figure for figure in page.draw(read_all([str(forward)]))}
    assert shown[figures.FIGURE_S4].chart is None
    assert shown[figures.FIGURE_7].chart is not None


def test_films_have_the_first_step_and_the_last(home):
    assert pictures.chosen([]) == []
    assert pictures.chosen([4]) == [4]
    assert pictures.chosen([*range(0, 1001, 20)]) == [0, 200, 400, 600, 800, 1000]
    shown, said = pictures.films(read_all([str(home / "plain"), str(home / "shaped")]))
    assert [(prompt, [film.run for film in films]) for prompt, films in shown] == [
        (prompt, ["plain", "shaped"]) for prompt in fabricated.PROMPTS
    ]
    assert said == []


def test_a_torn_picture_is_told_and_the_others_are_shown(tmp_path):
    path = fabricated.run(tmp_path, "torn")
    file = path / "pictures" / "probe_00008.png"
    file.write_bytes(file.read_bytes()[:200])
    shown, said = pictures.films(read_all([str(path)]))
    assert [strip.label for strip in shown[0][1][0].strips] == [
        f"step {step}" for step in (0, 4, 12, 16, 20)
    ]
    assert len(said) == 1
    assert "probe_00008.png is no picture of a probe" in said[0]


@pytest.fixture
def job(monkeypatch, capsys):
    """The job in this process: its exit status and what it says on either stream."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jobs/report.py", *arguments])
        try:
            runpy.run_path(str(ROOT / "jobs" / "report.py"), run_name="__main__")
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def test_the_job_writes_into_the_run_and_refuses_in_one_line(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = fabricated.run(tmp_path / "runs", "one", steps=4)
    code, said, errors = job()
    assert (code, errors) == (0, "")
    assert "one: 4 of 20 steps: still going or stopped" in said
    assert "report: runs/one/report.html" in said
    assert (path / "report.html").is_file()
    for arguments in (["nowhere"], ["one", "--to", "."], ["one", "--too", "x"]):
        code, _, errors = job(*arguments)
        assert code == 2
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
    code, said, _ = job("--help")
    assert not code
    assert "monitor.probe_every" in said


def test_a_page_takes_the_place_of_no_other_file(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = fabricated.run(tmp_path / "runs", "one", steps=1)
    (path / "notes.html").write_text("<p>mine</p>")
    before = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
    for name, told in (
        ("metrics.jsonl", "a report is a page; give --to a name such as report.html"),
        ("new.txt", "a report is a page"),
        ("notes.html", "is there and is no page of ours; give --to another name"),
    ):
        code, _, errors = job("one", "--to", f"runs/one/{name}")
        assert (code, errors.count("\n")) == (2, 1)
        assert f"runs/one/{name}" in errors
        assert told in errors
    assert before == {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
    for content in ("", "<!DOCTYPE HTML><p>before</p>"):
        (tmp_path / "old.HTML").write_text(content)
        assert job("one", "--to", "old.HTML")[0] == 0
        assert "before" not in (tmp_path / "old.HTML").read_text()
    assert job("one", "--to", "old.HTML")[0] == 0, "its own page is written anew"
