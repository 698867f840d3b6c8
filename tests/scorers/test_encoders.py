"""clip.py, pickscore.py and dino.py on random tiny models."""

import shutil

import numpy as np
import pytest
import torch

from percent_ray.scorers import clip, dino, pickscore
from percent_ray.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a red cat"), Prompt("two dogs"), Prompt("a red cat")]


@pytest.fixture(scope="module")
def images():
    """Smooth pictures, uint8 [3, 3, 40, 24]: neither square nor of the models' size."""
    coarse = torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(40, 24)).mul(255).to(torch.uint8)


def pictures(images):
    from PIL import Image

    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


@pytest.fixture(scope="module")
def parts(clip_folder):
    from transformers import CLIPModel, CLIPProcessor

    return CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)


def test_clip_score_is_transformers_logit(clip_folder, images, parts):
    model, processor = parts
    texts = [prompt.text for prompt in PROMPTS]
    with torch.no_grad():
        output = model(
            **processor(
                text=texts, images=pictures(images), return_tensors="pt", padding="max_length"
            )
        )
    scores = clip.load(clip_folder, device=CPU).score(images, PROMPTS)
    expected = output.logits_per_image.diagonal() / model.logit_scale.exp()
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-4, atol=1e-5)
    assert scores.dtype == torch.float32
    assert scores.std() > 1e-3


def test_pickscore_units(clip_folder, images, parts):
    cosines = clip.load(clip_folder, device=CPU).score(images, PROMPTS)
    scores = pickscore.load(clip_folder, device=CPU).score(images, PROMPTS)
    logits = cosines * parts[0].logit_scale.exp().item()
    torch.testing.assert_close(scores, logits / 26)
    report = pickscore.load(clip_folder, device=CPU).report(images, PROMPTS)
    torch.testing.assert_close(report.values, logits / 100)
    assert report.unit == "score / 100"
    report = clip.load(clip_folder, device=CPU).report(images, PROMPTS)
    torch.testing.assert_close(report.values, cosines)


def test_encode_is_the_projected_image_tower(clip_folder, images, parts):
    model, processor = parts
    with torch.no_grad():
        pixels = processor.image_processor(pictures(images), return_tensors="pt").pixel_values
        expected = model.visual_projection(model.vision_model(pixels).pooler_output)
    for module in (clip, pickscore):
        features = module.load(clip_folder, device=CPU).encode(images)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert (features.norm(dim=1) - 1).abs().max() > 0.01


def test_tensor_preprocessing_is_the_picture_preprocessing(clip_folder, dino_folder, images):
    from transformers import AutoImageProcessor, BitImageProcessorPil, CLIPImageProcessorPil

    for folder, kind in (
        (clip_folder, CLIPImageProcessorPil),
        (dino_folder, BitImageProcessorPil),
    ):
        ours = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
        theirs = kind.from_pretrained(folder)(pictures(images), return_tensors="pt")
        level = 1 / 255 / 0.22
        difference = (ours.pixel_values - theirs.pixel_values).abs()
        assert difference.max() <= 1.01 * level
        assert difference.mean() <= 0.2 * level


def test_long_prompt_is_truncated_to_the_tower(clip_folder, images):
    scorer = clip.load(clip_folder, device=CPU)
    long = Prompt("a" + " very" * 40 + " long prompt")
    assert scorer.score(images[:1], [long]).isfinite().all()


def test_score_does_not_depend_on_the_batch(clip_folder, images):
    scorer = clip.load(clip_folder, device=CPU)
    together = scorer.score(images, PROMPTS)
    alone = [scorer.score(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_pickscore_without_processor_files_takes_the_published_one(
    clip_folder, tmp_path, monkeypatch
):
    shutil.copytree(clip_folder, tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    asked = []
    monkeypatch.setattr(pickscore, "Towers", lambda _, processor, device: asked.append(processor))
    for folder in (clip_folder, str(tmp_path / "bare"), ""):
        pickscore.load(folder, device=CPU)
    assert asked == [clip_folder, pickscore.PROCESSOR, pickscore.PROCESSOR]


def test_dino_is_the_class_token_after_the_norm(dino_folder, images):
    from transformers import AutoImageProcessor, Dinov2Model

    model = Dinov2Model.from_pretrained(dino_folder)
    pixels = AutoImageProcessor.from_pretrained(dino_folder)(pictures(images), return_tensors="pt")
    with torch.no_grad():
        expected = model(pixels.pixel_values).pooler_output
    features = dino.load(dino_folder, device=CPU).encode(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert np.unique(features.numpy(), axis=0).shape == (3, 16)


def test_clips_vision_model_alone_is_read_after_its_norm(tmp_path, images):
    """Its hidden states end before it; its pooler is the class token behind it."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    torch.manual_seed(0)
    model = CLIPVisionModel(config).eval()
    torch.nn.init.normal_(model.state_dict(keep_vars=True)[_norm(model)], mean=1.0, std=0.5)
    model.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    processor.save_pretrained(tmp_path)
    found = dino.load(str(tmp_path), device=CPU).encode(images)
    pixels = processor(pictures(images), return_tensors="pt").pixel_values
    with torch.inference_mode():
        output = model(pixels)
    torch.testing.assert_close(found, output.pooler_output, atol=1e-5, rtol=1e-4)
    assert (found - output.last_hidden_state[:, 0]).abs().max() > 0.01


def _norm(model) -> str:
    return next(name for name in model.state_dict() if name.endswith("post_layernorm.weight"))


def test_dino_does_not_score(dino_folder, images):
    with pytest.raises(ValueError, match="only encodes"):
        dino.load(dino_folder, device=CPU).score(images, PROMPTS)


def siglip(folder, *, head=True):
    """A random tiny SiglipVisionModel, which pools its patches and has no class token."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    config = SiglipVisionConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, vision_use_head=head
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipVisionModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def test_a_model_without_a_class_token_is_pooled_as_its_own_class_does(
    tmp_path, dino_folder, images
):
    from transformers import AutoImageProcessor, SiglipVisionModel

    folder = siglip(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(folder)(pictures(images), return_tensors="pt")
    with torch.no_grad():
        output = SiglipVisionModel.from_pretrained(folder)(pixels.pixel_values)
    scorer = dino.load(folder, device=CPU)
    features = scorer.encode(images)
    torch.testing.assert_close(features, output.pooler_output, rtol=1e-3, atol=1e-3)
    assert (features - output.last_hidden_state[:, 0]).abs().max() > 0.1
    assert scorer.describe().endswith("; features: pooled by its own pooler")
    assert dino.load(dino_folder, device=CPU).describe().endswith("; features: class token")


def test_a_model_without_class_token_and_pooler_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"a SiglipVisionModel has no class token and no pooler"):
        dino.load(siglip(tmp_path, head=False), device=CPU).encode(images)


def test_a_model_of_pictures_and_texts_is_no_dino(clip_folder):
    with pytest.raises(ValueError, match=r"a CLIPModel reads pictures and texts; give a folder of"):
        dino.load(clip_folder, device=CPU)
