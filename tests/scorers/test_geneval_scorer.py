"""GenEval as a scorer: on the embedded world's detector and on a random tiny Mask2Former."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from percent_ray.recipe import tree
from percent_ray.scorers import detector, geneval
from percent_ray.scorers.base import load_scorer
from percent_ray.scorers.clip import Towers
from percent_ray.types import Prompt

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
RED = {
    "tag": "colors",
    "include": [{"class": "square", "count": 1, "color": "red"}],
    "prompt": "a photo of a red square",
}


def square(color):
    image = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    image[:, 10:22, 8:20] = torch.tensor(color, dtype=torch.uint8)[:, None, None]
    return image


def test_embedded_detector_scores_pixels():
    images = torch.stack([square((225, 30, 30)), square((35, 60, 225)), square((128, 128, 128))])
    prompts = [Prompt(RED["prompt"], RED)] * 3
    scorer = geneval.load("", device=CPU)
    assert scorer.score(images, prompts).tolist() == [1.0, 0.5, 0.0]
    report = scorer.report(images, prompts)
    assert report.values.tolist() == [1.0, 0.0, 0.0]
    half = geneval.load("", verdict=0.5, device=CPU)
    assert half.score(images, prompts).tolist() == [1.0, 0.25, 0.0]
    assert half.report(images, prompts).values.tolist() == [1.0, 0.0, 0.0]
    assert report.tasks == ("colors",) * 3


def test_prompt_without_metadata_is_an_error():
    scorer = geneval.load("", device=CPU)
    with pytest.raises(ValueError, match=r"^prompt 'a dog' has no metadata; .*$"):
        scorer.score(square((0, 0, 0))[None], [Prompt("a dog")])


def test_class_that_the_detector_does_not_know_is_an_error():
    record = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    with pytest.raises(ValueError, match="knows no dog"):
        geneval.load("", device=CPU).score(square((0, 0, 0))[None], [Prompt("a dog", record)])


def test_it_does_not_encode():
    with pytest.raises(ValueError, match="only scores"):
        geneval.load("", device=CPU).encode(square((0, 0, 0))[None])


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """A folder of a random tiny Mask2Former on a tiny Swin."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("mask2former")
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label={0: "mouse", 1: "dog"},
        label2id={"mouse": 0, "dog": 1},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Mask2FormerImageProcessor(size=size, size_divisor=32).save_pretrained(folder)
    return str(folder)


def test_a_mask2former_file_of_the_conversion_script_is_whole(mask2former, tmp_path):
    """It has index buffers where an older Swin had them, and may lack the weight of the loss."""
    shutil.copytree(mask2former, tmp_path / "published")
    file = tmp_path / "published" / "model.safetensors"
    weights = load_file(file)
    del weights["criterion.empty_weight"]
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    weights[f"{block}.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    save_file(weights, file, metadata={"format": "pt"})
    load = partial(detector.Mask2Former, name_colors=lambda crops, name: [], device=CPU)
    load(str(tmp_path / "published"))
    weights["model.transformer_module.more.weight"] = torch.zeros(3)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"detector of .*: 1 unexpected \(model\.transformer_mod"):
        load(str(tmp_path / "published"))


def pictures(number):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (number, 3, 48, 40), dtype=torch.uint8, generator=generator)


def record(**wanted):
    return {"tag": "single_object", "include": [{"class": "dog", "count": 1} | wanted]}


def test_the_published_names_of_cocos_classes_are_genevals(tmp_path):
    """Every class that the benchmark asks for is known, whichever of COCO's lists a detector has
    (mmdet's, from which the published Mask2Formers were converted, names six in another way)."""
    asked = {e["class"] for r in geneval_records() for e in r["include"]}
    mmdet = {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "potted plant": "pottedplant",
        "dining table": "diningtable",
        "couch": "sofa",
        "tv": "tvmonitor",
        "computer mouse": "mouse",
        "tv remote": "remote",
        "computer keyboard": "keyboard",
    }
    assert mmdet.keys() <= asked
    labels = {str(i): mmdet.get(name, name) for i, name in enumerate(sorted(asked))}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    assert set(detector.classes(str(tmp_path)) or ()) == asked


def geneval_records():
    file = ROOT / "jobs" / "recipes" / "prompts" / "geneval_553.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_mask2former_folder_detects(mask2former, monkeypatch):
    """A random model is unsure of everything, so the least confidence is lowered."""
    monkeypatch.setattr(detector, "THRESHOLD", 0.0)
    named = []

    def name_colors(crops, name):
        named.append(name)
        return ["red" for _ in crops]

    model = detector.Mask2Former(mask2former, name_colors=name_colors, device=CPU)
    plain = model(pictures(2), [record()] * 2)
    assert not named
    boxes = [entry for found in plain for name in found for entry in found[name]]
    assert boxes
    for found in plain:
        assert set(found) == {"computer mouse", "dog"}
        for entries in found.values():
            scores = [entry["score"] for entry in entries]
            assert scores == sorted(scores, reverse=True)
    for entry in boxes:
        x0, y0, x1, y1 = entry["box"]
        assert 0 <= x0 < x1 <= 40
        assert 0 <= y0 < y1 <= 48
        assert "color" not in entry
    colored = model(pictures(2), [record(color="red")] * 2)
    assert set(named) == {"dog"}
    mice = [entry for found in colored for entry in found["computer mouse"]]
    assert mice
    assert all("color" not in entry for entry in mice)
    dogs = [entry for found in colored for entry in found["dog"]]
    assert [d["color"] for d in dogs] == ["red"] * len(dogs)
    assert [d["box"] for d in dogs] == [d["box"] for found in plain for d in found["dog"]]


def test_pictures_are_looked_at_a_few_at_a_time(mask2former, monkeypatch):
    """What 24 at once would take of memory; the detections are those of all at once."""
    monkeypatch.setattr(detector, "THRESHOLD", 0.0)
    model = detector.Mask2Former(mask2former, name_colors=lambda crops, name: [], device=CPU)
    calls = []
    model._model.register_forward_pre_hook(
        lambda _, args, inputs: calls.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    records = [record(count=number) for number in range(6)]
    few = model(pictures(6), records)
    assert calls == [4, 2]
    monkeypatch.setattr(detector, "AT_ONCE", 6)
    once = model(pictures(6), records)
    assert [[entry["box"] for entry in found["dog"]] for found in few] == [
        [entry["box"] for entry in found["dog"]] for found in once
    ]


def test_mask2former_without_detections_scores_zero(mask2former, clip_folder, monkeypatch):
    monkeypatch.setattr(detector, "THRESHOLD", 1.1)
    scorer = geneval.load(mask2former, color_path=clip_folder, device=CPU)
    assert scorer.score(pictures(1), [Prompt("a dog", record())]).tolist() == [0.0]


def test_masks_become_boxes_and_crops_on_grey():
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 3:7] = True
    mask[2, 3] = False
    assert detector.box_of(mask) == [3, 2, 7, 4]
    crop = detector.crop(torch.full((3, 6, 8), 7, dtype=torch.uint8), mask, [3, 2, 7, 4])
    assert crop.shape == (3, 2, 4)
    assert crop[:, 0, 0].tolist() == [0x99] * 3
    assert crop[0, 1].tolist() == [7] * 4


def test_color_namer_averages_normalised_templates():
    """Towers that embed a text or a picture as its colour's axis, at any length."""
    axis = torch.eye(len(detector.COLORS))

    def texts(given):
        assert given[:3] == [
            "a photo of a red dog",
            "a photo of a red-colored dog",
            "a photo of a red object",
        ]
        rows = [next(i for i, c in enumerate(detector.COLORS) if f" {c}" in t) for t in given]
        return axis[rows] * torch.arange(1, len(rows) + 1)[:, None]

    def images(crops):
        return torch.stack([7 * axis[int(crop[0, 0, 0])] for crop in crops])

    towers = SimpleNamespace(description="", texts=texts, images=images)
    namer = detector.ColorNamer(towers)
    crops = [torch.full((3, 2, 2), index, dtype=torch.uint8) for index in (4, 9)]
    assert namer(crops, "dog") == ["blue", "white"]


def test_color_namer_is_clips_zero_shot_classifier(clip_folder):
    """On transformers' own classes, for crops of several sizes."""
    from transformers import CLIPModel, CLIPProcessor

    colors = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    crops = [*pictures(2), *(square(c)[:, 4 : 24 + n] for n, c in enumerate(colors))]
    model, processor = (c.from_pretrained(clip_folder) for c in (CLIPModel, CLIPProcessor))
    texts = [
        t.format(color=color, name="cup") for color in detector.COLORS for t in detector.TEMPLATES
    ]
    with torch.no_grad():
        tokens = processor.tokenizer(texts, padding="max_length", truncation=True, max_length=16)
        ids, mask = (torch.tensor(tokens[k]) for k in ("input_ids", "attention_mask"))
        each = model.get_text_features(ids, attention_mask=mask).pooler_output
        each = each / each.norm(dim=1, keepdim=True)
        classifier = each.view(10, 3, -1).mean(1)
        classifier = classifier / classifier.norm(dim=1, keepdim=True)
        pixels = torch.cat(
            [processor.image_processor(c, return_tensors="pt").pixel_values for c in crops]
        )
        features = model.get_image_features(pixels).pooler_output
    towers = Towers(clip_folder, processor=clip_folder, device=CPU)
    namer = detector.ColorNamer(towers)
    torch.testing.assert_close(namer._classifier("cup"), classifier, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(towers.images(crops), features, rtol=1e-4, atol=1e-6)
    best = (features @ classifier.T).argmax(1)
    assert namer(crops, "cup") == [detector.COLORS[i] for i in best]


def test_the_color_model_is_loaded_with_the_scorer(mask2former, clip_folder, tmp_path):
    settings = tree.Scorer(path=mask2former, color_path=clip_folder)
    scorer = load_scorer("geneval", settings, device=CPU)
    assert f"; colours by CLIPModel of {clip_folder}, " in scorer.describe()
    missing = tree.Scorer(path=mask2former, color_path=str(tmp_path))
    message = r"^scorers\.geneval: color_path: model of .*: has no config\.json"
    with pytest.raises(ValueError, match=message):
        load_scorer("geneval", missing, device=CPU)


def test_a_color_path_without_use_is_refused(clip_folder):
    with pytest.raises(ValueError, match=r"^scorers\.geneval: color_path is for .*; set path, too"):
        load_scorer("geneval", tree.Scorer(color_path=clip_folder), device=CPU)
