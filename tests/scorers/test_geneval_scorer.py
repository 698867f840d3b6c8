"""GenEval as a scorer: on the embedded world's detector and on a random tiny Mask2Former."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from percent_ray.scorers import detector, geneval
from percent_ray.types import Prompt

CPU = torch.device("cpu")
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
    detector.Mask2Former(str(tmp_path / "published"), device=CPU)
    weights["model.transformer_module.more.weight"] = torch.zeros(3)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"detector of .*: 1 unexpected \(model\.transformer_mod"):
        detector.Mask2Former(str(tmp_path / "published"), device=CPU)


def pictures(number):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (number, 3, 48, 40), dtype=torch.uint8, generator=generator)


def record(**wanted):
    return {"tag": "single_object", "include": [{"class": "dog", "count": 1} | wanted]}


def test_mask2former_folder_detects(mask2former, monkeypatch):
    """A random model is unsure of everything, so the least confidence is lowered."""
    monkeypatch.setattr(detector, "THRESHOLD", 0.0)
    named = []

    def load_namer(device):
        named.append(device)
        return lambda crops, name: ["red" for _ in crops]

    model = detector.Mask2Former(mask2former, device=CPU, load_namer=load_namer)
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
    assert named == [CPU]
    assert all("color" not in entry for found in colored for entry in found["computer mouse"])
    dogs = [entry for found in colored for entry in found["dog"]]
    assert [d["color"] for d in dogs] == ["red"] * len(dogs)
    assert [d["box"] for d in dogs] == [d["box"] for found in plain for d in found["dog"]]


def test_mask2former_without_detections_scores_zero(mask2former, monkeypatch):
    monkeypatch.setattr(detector, "THRESHOLD", 1.1)
    scorer = geneval.load(mask2former, device=CPU)
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
    """A fake whose embedding of a text or a picture is its colour's axis, at any length."""
    axis = torch.eye(len(detector.COLORS))

    def embed(texts):
        rows = [next(i for i, c in enumerate(detector.COLORS) if f" {c}" in t) for t in texts.texts]
        return axis[rows]

    model = SimpleNamespace(
        encode_text=lambda tokens, normalize: embed(tokens),
        encode_image=lambda pixels, normalize: axis[pixels[:, 0, 0, 0].long()],
    )

    def tokenizer(texts):
        assert texts[:3] == [
            "a photo of a red dog",
            "a photo of a red-colored dog",
            "a photo of a red object",
        ]
        tokens = SimpleNamespace(texts=texts)
        tokens.to = lambda device: tokens
        return tokens

    namer = detector.ColorNamer(
        model, lambda picture: torch.tensor(np.asarray(picture)), tokenizer, device=CPU
    )
    crops = [torch.full((3, 2, 2), index, dtype=torch.uint8) for index in (4, 9)]
    assert namer(crops, "dog") == ["blue", "white"]


def test_color_namer_on_a_random_open_clip():
    import open_clip
    from open_clip.transform import image_transform

    sizes = {"layers": 1, "width": 16}
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg=open_clip.CLIPVisionCfg(**sizes, head_width=8, patch_size=8, image_size=16),
        text_cfg=open_clip.CLIPTextCfg(**sizes, heads=2),
    ).eval()
    transform = image_transform(16, is_train=False)
    namer = detector.ColorNamer(
        model, transform, open_clip.get_tokenizer("ViT-L-14-quickgelu"), device=CPU
    )
    names = namer(list(pictures(3)), "computer mouse")
    assert len(names) == 3
    assert set(names) <= set(detector.COLORS)
