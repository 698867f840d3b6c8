import os
import time

import pytest

from percent_ray.report import page, runs
from tests.report import fabricated


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_found_by_folder_and_by_name_and_the_newest_where_none_is_named(home):
    one, two = (fabricated.run(home / "runs", name) for name in ("one", "two"))
    os.utime(two / "metrics.jsonl", (time.time() - 100,) * 2)
    assert [run.label for run in runs.read_all(["two", str(one)])] == ["two", "one"]
    assert [run.label for run in runs.read_all([])] == ["one"]


def test_runs_of_one_name_are_told_apart_by_their_folders(home):
    paths = [fabricated.run(home / place, "same") for place in ("a", "b")]
    assert [run.label for run in runs.read_all([str(path) for path in paths])] == [
        "a/same",
        "b/same",
    ]


def test_whatever_is_no_run_is_told_in_one_line(home):
    with pytest.raises(ValueError, match="no run in runs/; train one"):
        runs.read_all([])
    fabricated.run(home / "runs", "one")
    (home / "empty").mkdir()
    waiting = home / "waiting"
    fabricated.write_recipe(waiting, "waiting", probed=True, reward="pickscore")
    for given, told in (
        (["nowhere"], "no run nowhere: .* runs in runs/: one"),
        (["empty"], "empty is no run, it has no recipe.yaml"),
        (["runs"], "runs is no run, .* it has runs in it: one"),
        (["one@20"], "leave the step out: one"),
        (["one", "runs/one"], "runs/one is given twice"),
        (["waiting"], "waiting has no metrics yet"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            runs.read_all(given)
        assert "\n" not in str(caught.value)


WRONG_RECIPES = {
    "a: [": "not YAML: line 1",
    "- 1": "is no recipe; it has [1]",
    "": "is no recipe; it has None",
    "[" * 20_000: "more than 32 levels deep",
    "\x00": "not YAML",
    "run: many": "run: got 'many', needs keys of its own",
    "run: {steps: many}": "run.steps: got 'many', needs a whole number",
    "run: {steps: [1]}": "run.steps: got [1], needs a whole number",
    "run: {steps: .inf}": "run.steps: got inf, needs a whole number",
    "run: {steps: true}": "run.steps: got True, needs a whole number",
    "scorers: 3": "scorers: got 3, needs keys of its own",
    "scorers: {eyes: big}": "scorers.eyes: got 'big', needs keys of its own",
    "scorers: {eyes: {weight: big}}": "scorers.eyes.weight: got 'big', needs a finite number",
    "scorers: {eyes: {weight: .nan}}": "scorers.eyes.weight: got nan, needs a finite number",
    "method: pec": "method: got 'pec', needs keys of its own",
    "method: [pec]": "method: got ['pec'], needs keys of its own",
    "method: {name: [pec]}": "method.name: got ['pec'], needs text",
    "method: {name: pec, spaces: 3}": "method.spaces: got 3, needs a list",
    "monitor: {probe_every: often}": "monitor.probe_every: got 'often', needs a whole number",
    "sampling: {group_size: 2.5}": "sampling.group_size: got 2.5, needs a whole number",
}


def test_a_damaged_recipe_is_told_with_its_file_and_key(home):
    path = fabricated.run(home, "one", steps=1)
    for text, told in WRONG_RECIPES.items():
        (path / "recipe.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"^one/recipe\.yaml") as caught:
            runs.read_all(["one"])
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_recipe_of_which_a_report_knows_little_still_has_its_page(home):
    path = fabricated.run(home, "one")
    for text in ("{}", "method: null\nscorers: {eyes: null, a.b: {weight: 2}}\nrun: {steps: null}"):
        (path / "recipe.yaml").write_text(text)
        [run] = read = runs.read_all(["one"])
        assert (run.method, run.state) == ("unknown", "20 steps")
        assert page.write(read, "x")
    assert run.reward == {"a.b": 2.0}


def test_damaged_lines_are_left_out_and_told_by_their_numbers(home):
    path = fabricated.run(home, "one")
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    whole = runs.read_all(["one"])[0].steps
    for place, broken in (
        (3, b'{"step": 1, "metr\n'),
        (5, b"[1, 2]\n"),
        (8, b'{"step": null, "metrics": {}}\n'),
        (9, b"\xff\xfe\n"),
        (10, b'{"step": 3, "metrics": {"x": "y"}}\n'),
    ):
        lines.insert(place, broken)
    (path / "metrics.jsonl").write_bytes(b"".join(lines))
    [run] = runs.read_all(["one"])
    assert run.damaged == [4, 6, 9, 10, 11]
    assert run.steps == whole
    assert "5 of its metrics file's lines are damaged and left out" in runs.notes([run])[0]
    (path / "metrics.jsonl").write_bytes(b"{\n{\n")
    with pytest.raises(ValueError, match="all 2 are damaged"):
        runs.read_all(["one"])


def test_a_run_that_has_not_ended_says_how_far_it_is(home):
    fabricated.run(home, "going", steps=9)
    fabricated.run(home, "done")
    going, done = runs.read_all(["going", "done"])
    assert going.state.startswith("9 of 20 steps: still going or stopped, its last line is ")
    assert done.state == "20 steps"
    assert [line for line in runs.notes([going, done]) if "still going" in line] == [
        f"going: {going.state}; the same command later shows more"
    ]


def test_runs_that_do_not_compare_are_told(home):
    fabricated.run(home, "a")
    fabricated.run(home, "b", reward="taste", sampling={"group_size": 12})
    found = runs.notes(runs.read_all(["a", "b"]))
    assert any(
        line.startswith("The runs have different rewards (a: pickscore; b: taste)")
        for line in found
    )
    assert any("different group sizes (a: 24; b: 12)" in line for line in found)
    assert runs.notes(runs.read_all(["a"])) == []
