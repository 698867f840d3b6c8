"""Training prompts of GenEval's form that hold the benchmark's own out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from percent_ray.data import geneval_prompts
from percent_ray.data.geneval_prompts import SHARES, make
from percent_ray.data.prompts import read_prompts
from percent_ray.recipe.paths import EMBEDDED
from percent_ray.recipe.tree import Scorer
from percent_ray.scorers import geneval_record

ROOT = Path(__file__).parents[2]
HELD_OUT = geneval_prompts.read(ROOT / "jobs" / "recipes" / "prompts" / "geneval_553.jsonl")


def test_the_words_of_every_task_are_the_benchmarks_own():
    """With nothing held out its own prompts are among those that could be made, but for the few
    whose objects come in another order, whose two colours are one, or whose plural is odd."""
    words = geneval_prompts.Words.of(HELD_OUT)
    assert (len(words.classes), len(words.colors), words.counts) == (80, 10, (2, 3, 4))
    for task, every in geneval_prompts.TASKS.items():
        possible = {geneval_prompts.meaning(record): record for record in every(words)}
        own = [record for record in HELD_OUT if record["tag"] == task]
        found = [possible[m] for r in own if (m := geneval_prompts.meaning(r)) in possible]
        assert len(found) >= 0.9 * len(own), task
        prompts = {record["prompt"] for record in own}
        if task not in ("two_object", "color_attr", "position"):  # in any order
            assert {record["prompt"] for record in found} <= prompts, task


def test_none_is_held_out_and_tasks_have_their_shares():
    made = make(HELD_OUT, count=4000, shares=SHARES, seed=3)
    assert made == make(HELD_OUT, count=4000, shares=SHARES, seed=3)
    assert made != make(HELD_OUT, count=4000, shares=SHARES, seed=4)
    total = sum(SHARES.values())
    assert {task: len(records) for task, records in made.items()} == {
        task: round(4000 * share / total) for task, share in SHARES.items() if share
    }
    texts = {record["prompt"] for record in HELD_OUT}
    objects = {
        (r["tag"], tuple(sorted(json.dumps(e, sort_keys=True) for e in r["include"])))
        for r in HELD_OUT
        if r["tag"] in ("two_object", "color_attr")
    }
    known = geneval_record.vocabulary("facebook/mask2former")
    for task, records in made.items():
        for record in records:
            assert (record["tag"], record["prompt"] in texts) == (task, False)
            entries = sorted(json.dumps(e, sort_keys=True) for e in record["include"])
            assert (task, tuple(entries)) not in objects, "nor in another order"
            geneval_record.check({k: v for k, v in record.items() if k != "prompt"}, known)
    counts = [record["prompt"] for record in made["counting"]]
    assert max(map(counts.count, counts)) - min(map(counts.count, counts)) <= 1, "all alike"


def test_a_task_without_a_free_record_is_told():
    held_out = geneval_prompts.read(EMBEDDED / "prompts" / "train.jsonl")
    every = [r for words in [geneval_prompts.Words.of(held_out)] for r in TASKS["counting"](words)]
    with pytest.raises(ValueError, match="counting: every record of these words is held out"):
        make([*held_out, *every], count=10, shares={"counting": 1}, seed=0)
    with pytest.raises(ValueError, match="no task 'color'; GenEval has single_object, two_object"):
        make(held_out, count=10, shares={"color": 1}, seed=0)


def test_what_lies_left_of_an_anchor_is_the_anchor_right_of_it():
    """So no benchmark's position comes back turned round."""

    def at(anchor: str, relation: str, name: str) -> dict:
        entries = [{"class": anchor, "count": 1}]
        entries.append({"class": name, "count": 1, "position": [relation, 0]})
        return {"tag": "position", "include": entries, "prompt": ""}

    same = geneval_prompts.meaning
    assert same(at("cow", "left of", "dog")) == same(at("dog", "right of", "cow"))
    assert same(at("cow", "above", "dog")) == same(at("dog", "below", "cow"))
    assert same(at("cow", "left of", "dog")) != same(at("dog", "left of", "cow"))
    assert same(at("cow", "left of", "dog")) != same(at("cow", "above", "dog"))
    taken = {same(record) for record in HELD_OUT}
    made = make(HELD_OUT, count=20_000, shares={"position": 1}, seed=0)["position"]
    assert not [record for record in made if same(record) in taken]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "expected an object with 'prompt', got []"),
        ("{", "not JSON: Expecting"),
        ('{"prompt": "x", "tag": "colors", "include": "red"}', "include is 'red'; give a list"),
        ('{"prompt": "x", "tag": "colors", "include": [{"class": "cow"}]}', "has no count"),
        (
            '{"prompt": "x", "tag": "counting", "include": [{"class": "cow", "count": 7}]}',
            "7 of an object: counts are written up to 6",
        ),
        (
            '{"prompt": "x", "tag": "position", "include": [{"class": "cow", "count": 1}]}',
            "a position is of two objects",
        ),
    ],
)
def test_a_held_out_file_that_is_none_is_told_with_its_line(tmp_path, line, said):
    file = tmp_path / "held_out.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"held_out\.jsonl:2: ") as caught:
        geneval_prompts.read(file)
    assert said in str(caught.value)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"held_out\.jsonl:1: byte 1 is not UTF-8; save"):
        geneval_prompts.read(file)


TASKS = geneval_prompts.TASKS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    job = str(ROOT / "jobs" / "geneval_prompts.py")
    return subprocess.run([sys.executable, job, *arguments], capture_output=True, text=True)


def test_the_job_writes_prompts_that_a_run_reads(tmp_path):
    file = tmp_path / "train.jsonl"
    done = run("--to", str(file), "--count", "300")
    assert (done.returncode, done.stderr) == (0, "")
    assert "position" in done.stdout
    assert len(read_prompts(file, judges={"geneval": Scorer(path="facebook/x")})) == 300
    again = run("--to", str(file))
    assert again.returncode == 2
    assert "train.jsonl is there; give a new file" in again.stderr
    nowhere = run("--to", str(tmp_path / "no" / "train.jsonl"))
    assert (nowhere.returncode, "no; make it" in nowhere.stderr) == (2, True)
    nowhere = tmp_path / "nowhere.jsonl"
    objects = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]
    nowhere.write_text(json.dumps({"prompt": "a", "tag": "position", "include": objects}))
    for arguments, said in (
        (["--shares", "position"], "'position' is no TASK=PARTS such as position=7"),
        (["--count", "0"], "--count 0: give 1 to"),
        (["--count", "1"], "1 prompts are less than one of any task; give more"),
        (["--held-out", str(tmp_path / "no.jsonl")], "no.jsonl: no such file"),
        (["--held-out", str(nowhere)], "nowhere.jsonl:1: a position needs the place of its second"),
    ):
        wrong = run("--to", str(tmp_path / "other.jsonl"), *arguments)
        assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
        assert said in wrong.stderr
