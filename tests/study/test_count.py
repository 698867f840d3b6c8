"""Files of answers in, counts out; and files that are not what they should be."""

import csv
import json
import sys

import pytest
from PIL import Image

from jobs import user_study
from percent_ray.study.count import count
from percent_ray.study.records import QUESTIONS, Key, KeyPair, KeyRow, read_key, write_key

STUDY = "0123456789abcdef"
SIDES = "ABBA"


@pytest.fixture
def key(tmp_path):
    """The key of a study of four pairs, row A as Set 1 in the first and last."""
    key = Key(
        study=STUDY,
        row_a=KeyRow(label="Flow-GRPO", folder="rows/flow-grpo"),
        row_b=KeyRow(label="PEC", folder="rows/pec"),
        seed=0,
        images=8,
        pairs=tuple(
            KeyPair(pair=number, prompt=10 * number, text="a cat", set_1=side)
            for number, side in enumerate(SIDES, start=1)
        ),
    )
    write_key(key, tmp_path / "key.json")
    return tmp_path / "key.json"


def content(annotator="ann", overall=("set_1",) * 4, *, study=STUDY, others="none"):
    answers = [
        {"pair": number, "overall": choice, "diversity": others, "quality": others}
        for number, choice in enumerate(overall, start=1)
    ]
    return {"study": study, "annotator": annotator, "answers": answers}


def save(folder, name, fields):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return folder / name


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["user_study.py", "count", *map(str, arguments)])
    user_study.main()


def test_sides_are_turned_into_rows_and_written(tmp_path, key, monkeypatch, capsys):
    """By the key's ABBA, Set 1 four times is A, B, B, A; `set_1 set_2 set_2 set_1` is A only."""
    one = save(tmp_path / "answers", "one.json", content("ann", ("set_1",) * 4))
    two = save(
        tmp_path / "answers",
        "two.json",
        content("ben", ("set_1", "set_2", "set_2", None), others="set_2"),
    )
    run(monkeypatch, one, two)  # the key is in the folder above
    output = capsys.readouterr().out
    assert "2 annotators, 4 pairs, 23 answers (1 missing)" in output
    assert "overall: Flow-GRPO 71 % (" in output
    numbers = json.loads((tmp_path / "counts.json").read_text())
    assert numbers["annotators"] == ["ann", "ben"]
    overall = numbers["questions"]["overall"]
    assert {side: share["answers"] for side, share in overall["shares"].items()} == {
        "a": 5,
        "none": 0,
        "b": 2,
    }
    assert (overall["pairs_a"], overall["pairs_tied"], overall["pairs_b"]) == (2, 2, 0)
    diversity = numbers["questions"]["diversity"]
    assert {side: share["answers"] for side, share in diversity["shares"].items()} == {
        "a": 2,
        "none": 4,
        "b": 2,
    }
    with (tmp_path / "counts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows] == list(QUESTIONS)
    assert float(rows[0]["a_percent"]) == pytest.approx(500 / 7, rel=1e-5)
    assert rows[0]["missing"] == "1"
    with Image.open(tmp_path / "counts.png") as figure:
        assert figure.width > 700
    assert f"written: {tmp_path}/counts.json, counts.csv, counts.png" in output


def test_one_annotator_is_said(tmp_path, key):
    lines = count([save(tmp_path, "one.json", content())], key)
    assert "one annotator: the intervals say nothing of other people" in lines
    assert not any("agree" in line for line in lines)


def changed(**fields):
    return content() | fields


def answered(**fields):
    whole = content()
    whole["answers"][1] |= fields
    return whole


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (content(study="f" * 16), "bad.json answers study ffffffffffffffff, and the key is of"),
        ("{", "bad.json is not a file of answers: Invalid JSON"),
        ("", "bad.json is not a file of answers: Invalid JSON"),
        ("[" * 100_000, "bad.json is not a file of answers: Invalid JSON"),
        ("[]", "bad.json is not a file of answers: Input should be an object"),
        (answered(overall="left"), "answers.1.overall: Input should be 'set_1', 'none' or 'set_2'"),
        (answered(pair="2"), "answers.1.pair: Input should be a valid integer"),
        (answered(pair=0), "answers.1.pair: Input should be greater than 0"),
        (answered(pair=5), "bad.json answers pair 5; the study has 4 pairs"),
        (answered(pair=1), "bad.json answers pair 1 twice"),
        (answered(extra=1), "answers.1.extra: Extra inputs are not permitted"),
        (changed(**{"\x1b[2Jx": 1}), "bad.json is not a file of answers:  [2Jx: Extra inputs"),
        (changed(study="../../x"), "study: String should match pattern"),
        (changed(annotator="\x1b[31m"), r"bad.json: annotator '\x1b[31m' is no name"),
        (changed(annotator="  "), "bad.json: annotator '  ' is no name"),
        (changed(annotator="x" * 65), "annotator: String should have at most 64 characters"),
        (changed(annotator=" ANN"), "good.json are both of annotator  ANN; leave out the one"),
        (" " * 1_000_001, "bad.json has 1,000,001 bytes; a file of answers has 2,000 or so"),
    ],
)
def test_a_file_that_is_not_a_studys_answers_is_one_line(
    tmp_path, key, monkeypatch, capsys, fields, message
):
    good = save(tmp_path / "answers", "good.json", content())
    if isinstance(fields, dict) and fields["annotator"] == "ann":
        fields = fields | {"annotator": "ben"}
    bad = save(tmp_path / "answers", "bad.json", fields)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, good, bad)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: ")
    assert message in line
    assert "\x1b" not in line
    assert not (tmp_path / "counts.json").exists()


def test_a_file_that_is_not_there_and_a_key_that_is_not_are_one_line(
    tmp_path, key, monkeypatch, capsys
):
    good = save(tmp_path / "answers", "good.json", content())
    for arguments, message in (
        ((tmp_path / "none.json",), "none.json is not a file"),
        ((good, "--key", good), "good.json is not a study's key: row_a: Field required"),
        ((good, key), "key.json is not a file of answers: annotator: Field required"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert message in capsys.readouterr().err
    key.unlink()
    with pytest.raises(SystemExit):
        run(monkeypatch, good)
    error = capsys.readouterr().err
    assert f"no key.json in {good.parent} nor in {tmp_path}; set --key" in error


def test_the_key_is_its_owners_alone_also_where_a_file_was(tmp_path, key):
    key.chmod(0o644)
    write_key(read_key(key), key)
    assert key.stat().st_mode & 0o777 == 0o600
