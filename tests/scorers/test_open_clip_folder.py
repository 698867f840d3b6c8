"""CLIPs of open_clip's folders through kind clip, against open_clip's sums in plain torch."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from percent_ray.models import weights
from percent_ray.scorers import clip, open_clip_folder
from percent_ray.types import Prompt
from tests.scorers import published
from tests.scorers.open_clip_reference import (
    TINY,
    image_features,
    quick_gelu,
    shapes,
    text_features,
)
from tests.tiny import MAX_TOKENS, clip_tokenizer

CPU = torch.device("cpu")
PROMPTS = [Prompt("a red cat"), Prompt(""), Prompt("two dogs " * 300)]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
DFN5B = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 378,
        "layers": 32,
        "width": 1280,
        "head_width": 80,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 1024,
        "heads": 16,
        "layers": 24,
    },
}
"""ViT-H-14-378-quickgelu, as published."""


def config(mode="squash"):
    return {
        "model_cfg": {
            "embed_dim": 24,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 16,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": MAX_TOKENS,
                "vocab_size": len(clip_tokenizer()),
                "width": 16,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": mode,
        },
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder as it is published, and its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    state = published.random_state(
        shapes(**TINY, vocabulary=len(tokenizer), tokens=MAX_TOKENS),
    )
    (folder / open_clip_folder.CONFIG).write_text(json.dumps(config()))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder, state


def prepared(image):
    """open_clip's own on a tensor: both sides to 16, then mean and deviation; of noise, a few
    levels of 255 from what PIL makes of it."""
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    pixels = resize(image, [16, 16], InterpolationMode.BICUBIC, antialias=True)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.BICUBIC)
    pil = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    assert (pixels.int() - pil.int()).abs().float().mean() < 1
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return (pixels / 255 - mean) / std


def test_score_and_features_are_open_clips(tiny):
    folder, state = tiny
    scorer = clip.load(str(folder), device=CPU)
    images = published.images()
    pixels = torch.stack([prepared(image) for image in images])
    expected = image_features(state, pixels, quick_gelu)
    torch.testing.assert_close(scorer.encode(images), expected, rtol=1e-3, atol=1e-4)
    texts = text_features(state, [p.text for p in PROMPTS], quick_gelu)
    cosines = cosine_similarity(expected, texts)
    assert cosines.std() > 0.01
    torch.testing.assert_close(scorer.score(images, PROMPTS), cosines, rtol=1e-3, atol=1e-4)
    count = sum(x.numel() for x in state.values())
    assert f"{count:,} weights, none missing; tokenizer of {folder}" in scorer.describe()


def test_texts_of_any_length_and_a_batch_of_any_size(tiny):
    scorer = clip.load(str(tiny[0]), device=CPU)
    prompts = [Prompt(""), Prompt("cat"), Prompt("cat " * 600)]
    together = scorer.score(published.images(), prompts)
    assert together.isfinite().all()
    alone = [scorer.score(published.images()[i : i + 1], prompts[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_safetensors_of_the_same_names_are_the_same_model(tiny, tmp_path):
    folder, state = tiny
    other = shutil.copytree(folder, tmp_path / "safe")
    (other / "open_clip_pytorch_model.bin").unlink()
    save_file({n: t.contiguous() for n, t in state.items()}, other / "open_clip_model.safetensors")
    one, two = (clip.load(str(each), device=CPU) for each in (folder, other))
    assert torch.equal(one.encode(published.images()), two.encode(published.images()))


def test_the_shorter_side_and_the_middle_where_it_is_not_squashed(tiny, tmp_path):
    other = shutil.copytree(tiny[0], tmp_path / "crop")
    (other / open_clip_folder.CONFIG).write_text(json.dumps(config("shortest")))
    wide = torch.zeros(1, 3, 16, 64, dtype=torch.uint8)
    wide[..., 24:40] = 255
    squashed, cropped = (clip.load(str(each), device=CPU) for each in (tiny[0], other))
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    assert torch.equal(cropped.encode(wide), cropped.encode(white)), "the middle alone is seen"
    assert not torch.allclose(squashed.encode(wide), squashed.encode(white))


def test_the_published_names_and_shapes_are_those_of_the_model():
    """DFN5B's ViT-H/14 at 378 pixels: 27 x 27 patches."""
    state = shapes(
        vision=1280,
        text=1024,
        layers=(32, 24),
        patch=14,
        grid=27,
        vocabulary=49408,
        tokens=77,
        features=1024,
    )
    found = open_clip_folder.configured(DFN5B)
    assert (found.vision_config.num_attention_heads, found.vision_config.hidden_act) == (
        16,
        "quick_gelu",
    )
    model = open_clip_folder.model(found, published.meta_state(state), where="meta")
    assert sum(x.numel() for x in model.parameters()) == 986_109_441 + (27**2 - 16**2) * 1280


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, _: state.pop("ln_final.bias"), r"1 missing \(ln_final.bias\)"),
        (lambda state, _: state.update(more=torch.zeros(2)), r"1 unexpected \(more\)"),
        (lambda _, found: found["model_cfg"].pop("embed_dim"), "is of no plain CLIP"),
        (lambda _, found: found["model_cfg"]["vision_cfg"].update(layers=[3, 4]), "no plain CLIP"),
        (lambda _, found: found["preprocess_cfg"].update(resize_mode="longest"), "longest"),
    ],
)
def test_what_is_not_whole_is_one_line(tiny, tmp_path, change, words):
    folder = tmp_path / "bad"
    clip_tokenizer().save_pretrained(folder)
    state, found = dict(tiny[1]), config()
    change(state, found)
    (folder / open_clip_folder.CONFIG).write_text(json.dumps(found))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=words) as caught:
        clip.load(str(folder), device=CPU)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_says_which_it_needs(tiny, tmp_path):
    folder = shutil.copytree(tiny[0], tmp_path / "none")
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"none of open_clip_model.safetensors, open_clip_pytorch"):
        clip.load(str(folder), device=CPU)


def test_open_clips_pickle_is_not_to_be_converted_as_transformers_is(tiny):
    from transformers import CLIPModel

    with pytest.raises(ValueError, match=r"has no config.json|has no model.safetensors"):
        weights.check(tiny[0], CLIPModel)
