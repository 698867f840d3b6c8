"""hpsv2.py on a random tiny model under open_clip's names, against open_clip's sums in plain
torch."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from percent_ray.recipe.tree import Scorer as Settings
from percent_ray.scorers import hpsv2
from percent_ray.scorers.base import load_scorer
from percent_ray.types import Prompt
from tests.scorers import published
from tests.scorers.open_clip_reference import image_features, shapes, text_features
from tests.tiny import MAX_TOKENS, clip_tokenizer

CPU = torch.device("cpu")
PROMPTS = [Prompt("a red cat"), Prompt(""), Prompt("two dogs " * 300)]


VIT_H_14 = shapes(
    vision=1280,
    text=1024,
    layers=(32, 24),
    patch=14,
    grid=16,
    vocabulary=49408,
    tokens=77,
    features=1024,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the file, in half precision as published, and a tokenizer; and its weights."""
    folder = tmp_path_factory.mktemp("hpsv2")
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    state = published.random_state(
        shapes(
            vision=32,
            text=16,
            layers=(2, 2),
            patch=8,
            grid=2,
            vocabulary=len(tokenizer),
            tokens=MAX_TOKENS,
            features=24,
        )
    )
    half = {name: value.half() for name, value in state.items()}
    torch.save({"epoch": 1, "name": "tiny", "state_dict": half}, folder / hpsv2.FILE)
    return folder, {name: value.float() for name, value in half.items()}


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Those of the tiny model."""
    few = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 128, "image_size": 16, "patch_size": 8}
    tokenizer = clip_tokenizer()
    text = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    monkeypatch.setattr(hpsv2, "VISION", {**hpsv2.VISION, **few, **vision})
    monkeypatch.setattr(hpsv2, "TEXT", {**hpsv2.TEXT, **few, **text})
    monkeypatch.setattr(hpsv2, "FEATURES", 24)


def prepared(image):
    """HPSv2's preprocessing with torchvision, of one picture."""
    from torchvision.transforms.functional import InterpolationMode, normalize, resize
    from torchvision.transforms.functional import pad as padded

    height, width = image.shape[1:]
    scale = 16 / max(height, width)
    size = [round(height * scale), round(width * scale)]
    image = resize(image / 255, size, InterpolationMode.BICUBIC, antialias=True)
    extra = 16 - size[1], 16 - size[0]
    border = [extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return normalize(padded(image, border, fill=0), mean, std)


@pytest.mark.parametrize(("height", "width"), [(40, 24), (11, 16), (23, 57), (9, 12), (16, 16)])
def test_preprocessing_is_torchvisions(height, width):
    images = published.images(height=height, width=width)
    expected = torch.stack([prepared(image) for image in images])
    torch.testing.assert_close(hpsv2.preprocess(images, side=16), expected, rtol=1e-5, atol=1e-5)


def test_score_report_and_features_are_open_clips(tiny):
    folder, state = tiny
    scorer = hpsv2.load(str(folder), device=CPU)
    images = published.images()
    expected = image_features(state, torch.stack([prepared(image) for image in images]))
    torch.testing.assert_close(scorer.encode(images), expected, rtol=1e-3, atol=1e-4)
    cosines = cosine_similarity(expected, text_features(state, [p.text for p in PROMPTS]))
    torch.testing.assert_close(scorer.score(images, PROMPTS), cosines, rtol=1e-3, atol=1e-4)
    assert cosines.std() > 0.01
    report = scorer.report(images, PROMPTS)
    torch.testing.assert_close(report.values, cosines, rtol=1e-3, atol=1e-4)
    assert report.unit == "cosine (HPSv2.1)"
    count = sum(x.numel() for x in state.values())
    said = f"HPSv2.1: CLIPModel of {folder / hpsv2.FILE}, {count:,} weights, none missing; "
    assert scorer.describe() == f"{said}tokenizer of {folder}"


def test_texts_of_any_length_and_a_batch_of_any_size(tiny):
    scorer = hpsv2.load(str(tiny[0] / hpsv2.FILE), device=CPU)
    prompts = [Prompt(""), Prompt("cat"), Prompt("cat " * 600)]
    together = scorer.score(published.images(), prompts)
    assert together.isfinite().all()
    alone = [scorer.score(published.images()[i : i + 1], prompts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    cut = scorer.score(published.images(), [Prompt("cat " * 500)] * 3)
    torch.testing.assert_close(together[2], cut[2])


def test_the_published_names_and_shapes_are_those_of_the_model(monkeypatch):
    monkeypatch.undo()
    clip = hpsv2.model(published.meta_state(VIT_H_14), where="HPSv2.1 of meta")
    assert sum(x.numel() for x in clip.parameters()) == 986_109_441


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"drop": "visual.proj"}, r"1 missing \(visual\.proj\)"),
        (
            {"drop": "transformer.resblocks.1.attn.in_proj_bias"},
            r"1 missing \(transformer\.resblocks\.1\.attn\.in_proj_bias\)",
        ),
        ({"add": "score_predictor.0.bias"}, r"1 unexpected \(score_predictor\.0\.bias\)"),
        (
            {"cut": "ln_final.bias"},
            r"1 of another shape \(ln_final\.bias read as \[6\], needs \[16\]\)",
        ),
    ],
)
def test_a_file_without_all_of_its_weights_is_one_line(tiny, tmp_path, damage, message):
    clip_tokenizer().save_pretrained(tmp_path)
    torch.save({"state_dict": published.damaged(tiny[1], **damage)}, tmp_path / hpsv2.FILE)
    line = rf"^scorers\.mine: HPSv2\.1 of .*\.pt does not fit CLIPModel: {message}; give the file"
    with pytest.raises(ValueError, match=line):
        load_scorer("mine", Settings(kind="hpsv2", path=str(tmp_path)), device=CPU)


def test_what_is_no_such_file_is_one_line(tiny, tmp_path):
    clip_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / hpsv2.FILE

    def said(path=str(tmp_path)):
        return published.refusal("hpsv2", path)

    assert said() == (
        f"HPSv2.1 of {tmp_path}: has no {file.name}; give that file or a folder with it"
    )
    assert said("http://x/y").startswith("http://x/y is a URL; give a folder or a hub id or a wei")
    torch.save(tiny[1], file)
    assert said().startswith(f"HPSv2.1 of {file}: holds no state dict under 'state_dict'; give")
    file.write_text("<html>not found</html>")
    assert said().startswith(f"HPSv2.1 of {file}: is no PyTorch file of plain weights; give")
    file.write_bytes((tiny[0] / hpsv2.FILE).read_bytes()[:5000])
    assert said().startswith(f"HPSv2.1 of {file}: cannot be read (")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / hpsv2.FILE)
    clip_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no PyTorch file of plain weights"):
        hpsv2.load(str(tmp_path), device=CPU)
    assert not (tmp_path / "ran").exists()


def test_without_a_tokenizer_beside_it_the_published_one_is_read(tiny, tmp_path, monkeypatch):
    (tmp_path / hpsv2.FILE).symlink_to(tiny[0] / hpsv2.FILE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=rf"^tokenizer of {hpsv2.TOKENIZER}: .*; set it to a fold"):
        hpsv2.load(str(tmp_path), device=CPU)
