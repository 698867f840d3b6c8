import json
import os

import pytest
import torch
from safetensors.torch import save_file

from percent_ray.evaluation.quality import Asked, Judgement
from percent_ray.evaluation.store import Store
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt

BOTH = Asked(reports=True, encodes=True)
FEATURES = Asked(reports=False, encodes=True)
PROMPTS = [Prompt("a cat"), Prompt("a dog", {"tag": "colors"})]


def test_what_was_said_comes_back(tmp_path):
    row = Store(tmp_path, images=2).row("base")
    report = Report(torch.tensor([0.5, 1.5]), "points", ("colors", "counting"))
    report.failures["too many"] = torch.tensor([1.0, 0.0])
    row.put("judge", 3, Judgement(report, torch.eye(2)))
    row.put("encoder", 3, Judgement(features=torch.ones(2, 4)))
    said = row.get("judge", 3, BOTH)
    assert said.report is not None
    assert (said.report.unit, said.report.tasks) == ("points", ("colors", "counting"))
    assert torch.equal(said.report.values, report.values)
    assert torch.equal(said.features, torch.eye(2))
    assert list(said.report.failures) == ["too many"]
    assert torch.equal(said.report.failures["too many"], report.failures["too many"])
    assert row.get("encoder", 3, FEATURES).report is None
    assert [row.has("judge", n) for n in (2, 3)] == [False, True]
    judged = list(row.judged({"judge": BOTH, "encoder": FEATURES}, 5))
    assert [len(j.features) for j in judged] == [0, 0, 0, 2, 0]
    assert list(judged[3].reports) == ["judge"]


def test_pictures_are_there_whole_or_not_at_all(tmp_path):
    row = Store(tmp_path, images=2).row("base")
    (tmp_path / "rows/base/pictures/.partial-00001").mkdir(parents=True)
    (tmp_path / "rows/base/pictures/.partial-00001/000.png").write_bytes(b"torn")
    assert row.pictures(1) == []
    row.put_pictures(1, [b"one", b"two"])
    assert [path.read_bytes() for path in row.pictures(1)] == [b"one", b"two"]


def test_a_damaged_word_names_its_file(tmp_path):
    row = Store(tmp_path, images=2).row("base")
    row.put("judge", 0, Judgement(features=torch.ones(2, 4)))
    path = tmp_path / "rows/base/judged/judge/00000.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{path} is damaged .*delete it"):
        row.get("judge", 0, FEATURES)


def test_one_folder_is_one_evaluation(tmp_path):
    store = Store(tmp_path, images=2)
    store.claim({"images": 4, "seed": 1}, PROMPTS)
    store.claim({"images": 4, "seed": 1}, PROMPTS)
    with pytest.raises(ValueError, match=r"images was 4, now 8; set --folder"):
        store.claim({"images": 8, "seed": 1}, PROMPTS)
    with pytest.raises(ValueError, match="of other prompts"):
        store.claim({"images": 4, "seed": 1}, PROMPTS[:1])
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "a cat"},
        {"prompt": "a dog", "tag": "colors"},
    ]
    row = store.row("base")
    row.claim("base", {"steps": 10, "weights": {"a": "1"}})
    with pytest.raises(ValueError, match=r'weights was {"a": "1"}, now {"a": "2"}'):
        row.claim("base", {"steps": 10, "weights": {"a": "2"}})


def test_one_process_writes(tmp_path):
    with (
        Store(tmp_path, images=2).writing(),
        pytest.raises(ValueError, match="another evaluation is writing"),
        Store(tmp_path, images=2).writing(),
    ):
        pass
    with Store(tmp_path, images=2).writing():
        assert os.listdir(tmp_path)


BROKEN = {
    "empty": (b"", "empty"),
    "torn": (b'{"images": 2, "se', "not JSON|Unterminated"),
    "null": (b"null", "holds None|expected an object"),
    "list": (b"[]", r"holds \[\]|expected an object"),
    "number": (b"7", "holds 7|expected an object"),
    "binary": (b"\xff\x00", "utf-8|not UTF-8"),
    "deep": (b'{"a": ' + b"[" * 200_000, "levels"),
}


@pytest.mark.parametrize("name", ["protocol.json", "prompts.jsonl", "row.json", "judge.json"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_damaged_claim_names_its_file(tmp_path, name, broken):
    def claim():
        store = Store(tmp_path, images=2)
        store.claim({"images": 2}, PROMPTS)
        store.row("base").claim("base", {})
        store.row("base").claim_judge("clip", {})

    claim()
    [path] = tmp_path.rglob(name)
    contents, why = BROKEN[broken]
    path.write_bytes(contents)
    with pytest.raises(
        ValueError, match=rf"^{path} is damaged \((.*({why}).*)\); delete it"
    ) as caught:
        claim()
    assert str(caught.value).count("\n") == 0
    path.unlink()
    claim()


GOOD = {"values": torch.ones(2), "failed few": torch.zeros(2), "features": torch.eye(2)}
ABOUT = {"unit": "points", "tasks": '["colors", "counting"]'}


@pytest.mark.parametrize(
    ("tensors", "about", "why"),
    [
        ({}, None, "no tasks and no unit of the values"),
        ({}, {"unit": "points"}, "no tasks of the values"),
        ({}, {**ABOUT, "tasks": "{"}, "Expecting"),
        ({}, {**ABOUT, "tasks": '"ab"'}, "tasks are 'ab', need names or null"),
        ({}, {**ABOUT, "tasks": "[1, 2]"}, r"tasks are \[1, 2\]"),
        ({}, {**ABOUT, "tasks": '["a"]'}, "1 tasks for 2 pictures"),
        ({"values": torch.ones(3)}, ABOUT, r"scores: \[3\] for 2 pictures"),
        ({"values": torch.ones(2, 1)}, ABOUT, r"scores: \[2, 1\] for 2"),
        ({"values": torch.tensor([1, torch.nan])}, ABOUT, "1 of 2 scores are not finite"),
        ({"values": torch.ones(2, dtype=torch.int64)}, ABOUT, "values is torch.int64"),
        ({"values": None}, ABOUT, "no scores"),
        ({"failed few": torch.ones(1)}, ABOUT, r"few: \[1\] for 2 pictures"),
        ({"failed few": torch.tensor([0, torch.inf])}, ABOUT, "1 of 2 few are not finite"),
        ({"features": torch.ones(2)}, ABOUT, r"features: \[2\] for 2 pictures"),
        ({"features": torch.ones(3, 2)}, ABOUT, r"features: \[3, 2\] for 2 pictures"),
        ({"features": torch.ones(2, 0)}, ABOUT, r"features: \[2, 0\] for 2 pictures"),
        ({"features": torch.tensor([[1, torch.nan]] * 2)}, ABOUT, "2 of 2 feature vectors"),
        ({"features": None}, ABOUT, "no features"),
    ],
)
def test_a_word_of_another_form_is_damaged(tmp_path, tensors, about, why):
    row = Store(tmp_path, images=2).row("base")
    path = row.judged_file("judge", 0)
    path.parent.mkdir(parents=True)
    save_file(GOOD, path, metadata=ABOUT)
    assert row.get("judge", 0, BOTH).report is not None
    save_file({k: v for k, v in {**GOOD, **tensors}.items() if v is not None}, path, metadata=about)
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.*{why}.*\); delete it") as caught:
        row.get("judge", 0, BOTH)
    assert "\n" not in str(caught.value)


def test_features_of_two_lengths_name_both_files(tmp_path):
    row = Store(tmp_path, images=2).row("base")
    for number, width in enumerate((4, 4, 3)):
        row.put("dino", number, Judgement(features=torch.ones(2, width)))
    with pytest.raises(ValueError, match=r"00002.* or .*00000.* \(features of length 3 and 4\)"):
        list(row.judged({"dino": FEATURES}, 3))
    assert len(list(row.judged({"dino": FEATURES}, 2))) == 2
