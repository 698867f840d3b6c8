import json
import os

import pytest
import torch

from percent_ray.evaluation.quality import Judgement
from percent_ray.evaluation.store import Store
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt

PROMPTS = [Prompt("a cat"), Prompt("a dog", {"tag": "colors"})]


def test_what_was_said_comes_back(tmp_path):
    row = Store(tmp_path).row("base")
    report = Report(torch.tensor([0.5, 1.5]), "points", ("colors", "counting"))
    report.failures["too many"] = torch.tensor([1.0, 0.0])
    row.put("judge", 3, Judgement(report, torch.eye(2)))
    row.put("encoder", 3, Judgement(features=torch.ones(2, 4)))
    said = row.get("judge", 3)
    assert said.report is not None
    assert (said.report.unit, said.report.tasks) == ("points", ("colors", "counting"))
    assert torch.equal(said.report.values, report.values)
    assert torch.equal(said.features, torch.eye(2))
    assert list(said.report.failures) == ["too many"]
    assert torch.equal(said.report.failures["too many"], report.failures["too many"])
    assert row.get("encoder", 3).report is None
    assert [row.has("judge", n) for n in (2, 3)] == [False, True]
    judged = list(row.judged(["judge", "encoder"], 5))
    assert [len(j.features) for j in judged] == [0, 0, 0, 2, 0]
    assert list(judged[3].reports) == ["judge"]


def test_pictures_are_there_whole_or_not_at_all(tmp_path):
    row = Store(tmp_path).row("base")
    (tmp_path / "rows/base/pictures/.partial-00001").mkdir(parents=True)
    (tmp_path / "rows/base/pictures/.partial-00001/000.png").write_bytes(b"torn")
    assert row.pictures(1) == []
    row.put_pictures(1, [b"one", b"two"])
    assert [path.read_bytes() for path in row.pictures(1)] == [b"one", b"two"]


def test_a_damaged_word_names_its_file(tmp_path):
    row = Store(tmp_path).row("base")
    row.put("judge", 0, Judgement(features=torch.ones(2, 4)))
    path = tmp_path / "rows/base/judged/judge/00000.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{path} is damaged .*delete it"):
        row.get("judge", 0)


def test_one_folder_is_one_evaluation(tmp_path):
    store = Store(tmp_path)
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
        Store(tmp_path).writing(),
        pytest.raises(ValueError, match="another evaluation is writing"),
        Store(tmp_path).writing(),
    ):
        pass
    with Store(tmp_path).writing():
        assert os.listdir(tmp_path)
