"""What every scorer is held to: whole weights at load, batches, and answers of the right form."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from percent_ray.recipe.discover import SCORERS
from percent_ray.recipe.tree import Scorer as Settings
from percent_ray.scorers.base import Checked, Report, load_scorer, try_out
from percent_ray.types import Prompt

CPU = torch.device("cpu")
PROMPT = Prompt("a red cat")


class Fake:
    """Brightness, as a score, a feature and a report; counts the images of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, images, prompts):
        self.calls.append(len(images))
        assert len(images) == len(prompts)
        return images.float().mean((1, 2, 3))

    def report(self, images, prompts):
        level = self.score(images, prompts)
        return Report(level, "level", tuple(p.text for p in prompts), {"dark": 255 - level})

    def encode(self, images):
        self.calls.append(len(images))
        return images.float().mean((2, 3))

    def describe(self):
        return "brightness"


def images(count: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=source)


def test_calls_are_cut_into_the_scorers_own_batches():
    plain, fake = Fake(), Fake()
    checked = Checked("mine", fake, batch_size=3)
    prompts = [Prompt(str(i)) for i in range(8)]
    assert torch.equal(checked.score(images(8), prompts), plain.score(images(8), prompts))
    assert torch.equal(checked.encode(images(8)), plain.encode(images(8)))
    assert fake.calls == [3, 3, 2, 3, 3, 2]
    report = checked.report(images(8), prompts)
    assert torch.equal(report.values, plain.score(images(8), prompts))
    assert (report.unit, report.tasks) == ("level", tuple("01234567"))
    assert torch.equal(report.failures["dark"], 255 - report.values)
    with pytest.raises(ValueError, match="8 images but 2 prompts"):
        checked.score(images(8), prompts[:2])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(1), r"returned float32 \[1\], expected floats \[2\]"),
        (torch.tensor(0.5), r"returned float32 \[\], expected floats \[2\]"),
        (torch.zeros(2, 1), r"returned float32 \[2, 1\], expected floats \[2\]"),
        (torch.zeros(2, dtype=torch.int64), r"returned int64 \[2\], expected floats \[2\]"),
        ([0.1, 0.2], "returned list, expected a tensor"),
        (0.5, "returned float, expected a tensor"),
        (torch.tensor([0.1, float("nan")]), "gave a score that is not finite"),
    ],
)
def test_an_answer_of_another_form_is_an_error_that_names_the_scorer(answer, message):
    """One value for all images would otherwise be broadcast, and train to the end."""
    fake = Fake()
    fake.score = lambda images, prompts: answer
    with pytest.raises(ValueError, match=rf"^scorers\.mine: tried on .* 'a red cat': {message}$"):
        try_out(
            Checked("mine", fake, batch_size=8), PROMPT, scores=True, encodes=False, size=(8, 8)
        )


def test_features_of_another_form_are_an_error_that_names_the_scorer():
    fake = Fake()
    fake.encode = lambda images: torch.zeros(len(images))
    with pytest.raises(
        ValueError, match=r"scorers\.mine: returned float32 \[5\], expected floats \[5, D\]"
    ):
        Checked("mine", fake, batch_size=8).encode(images(5))


def test_a_report_whose_tasks_do_not_belong_to_its_images_is_an_error():
    """In batches of 2 the second alone has tasks."""
    fake = Fake()
    fake.report = lambda part, prompts: Report(
        torch.zeros(len(part)), "share", ("a",) * len(part) if part[0, 0, 0, 0] else None
    )
    grey = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    grey[2:] = 1
    with pytest.raises(ValueError, match=r"^scorers\.mine: reported 2 tasks for 4 images$"):
        Checked("mine", fake, batch_size=2).report(grey, [PROMPT] * 4)


def test_a_scorer_is_tried_only_as_far_as_it_will_be_called():
    fake = Fake()
    try_out(Checked("mine", fake, batch_size=8), PROMPT, scores=False, encodes=False, size=(4, 4))
    assert fake.calls == []
    fake.score = lambda images, prompts: 1 / 0
    with pytest.raises(
        ValueError, match=r"scorers\.mine: tried on .*: ZeroDivisionError: division by zero$"
    ):
        try_out(Checked("mine", fake, batch_size=8), PROMPT, scores=True, encodes=True, size=(4, 4))


def test_two_scorers_of_one_kind(clip_folder):
    one = load_scorer("judge", Settings(kind="clip", path=clip_folder), device=CPU)
    two = load_scorer("clip", Settings(path=clip_folder), device=CPU)
    prompts = [PROMPT] * 2
    assert torch.equal(one.score(images(2), prompts), two.score(images(2), prompts))
    assert one.describe().startswith(f"scorers.judge: CLIPModel of {clip_folder}, ")
    assert one.describe().endswith(" weights, none missing")


def damaged(folder: str, to: Path, *, drop: str = "", add: str = "", cut: str = "") -> str:
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    if drop:
        del weights[drop]
    if add:
        weights[add] = torch.zeros(3)
    if cut:
        weights[cut] = weights[cut][:5].clone()
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return str(to)


@pytest.mark.parametrize("kind", ["clip", "pickscore"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"drop": "visual_projection.weight"}, r"1 missing \(visual_projection\.weight\)"),
        ({"add": "head.bias"}, r"1 unexpected \(head\.bias\)"),
        (
            {"cut": "visual_projection.weight"},
            r"1 of another shape \(visual_projection\.weight \[5, 16\], needs \[16, 16\]\)",
        ),
    ],
)
def test_a_folder_without_all_of_its_weights_is_refused(
    clip_folder, tmp_path, kind, damage, message
):
    folder = damaged(clip_folder, tmp_path / "damaged", **damage)
    with pytest.raises(ValueError, match=rf"^scorers\.mine: model of .* does not fit .*{message}"):
        load_scorer("mine", Settings(kind=kind, path=folder), device=CPU)


def test_a_file_that_is_cut_short_is_one_line(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"^scorers\.clip: model of .*short: its model\.safetensors is to"
    ):
        load_scorer("clip", Settings(path=str(tmp_path / "short")), device=CPU)


def test_a_dino_without_a_pooler_is_whole_and_without_a_layer_is_not(dino_folder, tmp_path):
    bare = damaged(dino_folder, tmp_path / "bare", add="pooler.dense.bias")
    assert load_scorer("dino", Settings(path=bare), device=CPU).encode(images(2)).shape == (2, 16)
    broken = damaged(dino_folder, tmp_path / "broken", drop="layernorm.weight")
    with pytest.raises(ValueError, match=r"1 missing \(layernorm\.weight\)"):
        load_scorer("dino", Settings(path=broken), device=CPU)


@pytest.mark.parametrize("kind", ["clip", "pickscore"])
def test_a_folder_without_its_tokenizer_is_refused(clip_folder, tmp_path, kind):
    """transformers makes an empty one, to which every word is the same."""
    shutil.copytree(clip_folder, tmp_path / "mute")
    for file in (tmp_path / "mute").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        ValueError, match=r"^scorers\.mine: tokenizer of .*mute: has none of tokenizer\."
    ):
        load_scorer("mine", Settings(kind=kind, path=str(tmp_path / "mute")), device=CPU)


@pytest.mark.parametrize("kind", ["clip", "dino", "geneval", "pickscore"])
@pytest.mark.parametrize(("path", "place"), [("weights.pt", "weights file"), ("http://x/y", "URL")])
def test_what_a_kind_does_not_take_is_one_line(tmp_path, monkeypatch, kind, path, place):
    (tmp_path / "weights.pt").write_text("")
    monkeypatch.chdir(tmp_path)
    message = rf"^scorers\.mine: {path} is a {place}; give a folder or a hub id$"
    with pytest.raises(ValueError, match=message):
        load_scorer("mine", Settings(kind=kind, path=path), device=CPU)


def test_every_kind_is_found_and_helpers_are_none():
    assert SCORERS.names() == [
        "aesthetic",
        "clip",
        "dino",
        "geneval",
        "hpsv2",
        "http",
        "imagereward",
        "pickscore",
        "unifiedreward",
    ]


@pytest.mark.parametrize(
    ("line", "call"), [("ENCODES = False", "encode"), ("SCORES = False", "score")]
)
def test_a_kind_says_what_it_does_not_do_and_refuses_it(line, call):
    for kind in SCORERS.names():
        module = SCORERS.module(kind, key="")
        scorer = next(c for c in vars(module).values() if hasattr(c, call) and hasattr(c, "report"))
        refuses = "only" in inspect.getsource(getattr(scorer, call))
        assert SCORERS.has(kind, line) == refuses, kind
