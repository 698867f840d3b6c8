"""The shipped models: real formats, small files, and enough quality to learn from."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusion3Pipeline
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModelWithProjection,
    Dinov2Model,
)

from jobs.pretrain_shapes import clip, dino, flow, preferences, report, tiny, vae
from jobs.pretrain_shapes.common import psnr, to_unit
from jobs.pretrain_shapes.text import MAX_LENGTH, WORDS
from jobs.pretrain_shapes.views import augment
from percent_ray.preview import meta
from percent_ray.shapes import scenes

WEIGHTS = Path(str(files("percent_ray.shapes"))) / "weights"
SEED = 99


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe():
    return flow.load(WEIGHTS / "sd3")


RANKERS = ("pickscore", "judge")


def load_ranker(name):
    return CLIPModel.from_pretrained(WEIGHTS / name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ranker():
    return load_ranker("pickscore")


@pytest.fixture(scope="module")
def views():
    torch.manual_seed(0)
    images, _ = scenes.dataset(100, SEED)
    return to_unit(images), augment(to_unit(images))


def test_all_weights_are_safetensors_and_at_most_20_mb():
    paths = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) <= 20e6
    assert {path.suffix for path in paths} <= {".safetensors", ".json", ".txt"}
    names = {"sd3", "tiny", "clip", "dino", *RANKERS}
    assert {path.name for path in WEIGHTS.iterdir()} == names


def test_the_pipeline_has_the_real_classes_in_float32(pipe):
    assert isinstance(pipe, StableDiffusion3Pipeline)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert isinstance(pipe.text_encoder, CLIPTextModelWithProjection)
    assert isinstance(pipe.text_encoder_2, CLIPTextModelWithProjection)
    parts = (pipe.vae, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert pipe.tokenizer_max_length == MAX_LENGTH


def test_each_word_is_one_token(pipe, ranker):
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2, processor("clip").tokenizer):
        for word in WORDS:
            assert len(tokenizer(word).input_ids) == 3, word
        longest = max((record["prompt"] for record in clip.RECORDS), key=lambda p: p.count(" "))
        assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= MAX_LENGTH


def processor(name):
    return CLIPProcessor.from_pretrained(WEIGHTS / name)


def test_text_towers_pool_the_true_end_token(pipe, ranker):
    """What follows the end token must not reach the pooled embedding."""
    for encoder in (pipe.text_encoder, pipe.text_encoder_2, ranker.text_model):
        assert encoder.config.eos_token_id == pipe.tokenizer.eos_token_id != 2
    ids = flow.token_ids(pipe, ["a photo of a red circle"])
    end = int((ids[0] == pipe.tokenizer.eos_token_id).nonzero()[0])
    spoiled = ids.clone()
    spoiled[0, end + 1 :] = pipe.tokenizer.bos_token_id - 1
    with torch.no_grad():
        assert torch.equal(pipe.text_encoder(ids)[0], pipe.text_encoder(spoiled)[0])
        changed = ids.clone()
        changed[0, end - 1] = ids[0, end - 2]
        assert not torch.allclose(pipe.text_encoder(ids)[0], pipe.text_encoder(changed)[0])


def test_training_conditions_on_what_the_pipeline_encodes(pipe):
    prompts = ["a photo of a red circle and a blue square", "", "a photo of two crosses"]
    context, pooled = flow.condition(pipe, flow.token_ids(pipe, prompts))
    expected, _, expected_pooled, _ = pipe.encode_prompt(
        prompts, None, None, max_sequence_length=flow.T5_TOKENS, do_classifier_free_guidance=False
    )
    assert torch.equal(context, expected)
    assert torch.equal(pooled, expected_pooled)


def test_vae_reconstructs_held_out_scenes(pipe):
    images, _ = scenes.dataset(64, SEED)
    assert psnr(images, vae.reconstruct(pipe.vae, images)) >= 32


def test_the_tiny_decoder_makes_the_vaes_pictures_at_a_quarter_of_the_cost(pipe):
    small = AutoencoderTiny.from_pretrained(WEIGHTS / "tiny", torch_dtype=torch.float32)
    images, _ = scenes.dataset(64, SEED)
    assert tiny.agreement(small, pipe.vae, images) >= 32
    latents = vae.encode(pipe.vae, images[:1])
    costs = [meta.flops(lambda decoder=d: decoder.decode(latents)) for d in (pipe.vae, small)]
    assert costs[1] < 0.3 * costs[0]
    assert sum(file.stat().st_size for file in (WEIGHTS / "tiny").iterdir()) <= 500e3


def test_the_tiny_encoder_makes_the_vaes_latents(pipe):
    small = AutoencoderTiny.from_pretrained(WEIGHTS / "tiny", torch_dtype=torch.float32)
    images, _ = scenes.dataset(64, SEED)
    with torch.no_grad():
        latents = tiny.encoded_of(small, to_unit(images))
    assert (latents - vae.encode(pipe.vae, images)).square().mean() < 0.1


def test_latents_are_about_unit_normal(pipe):
    images, _ = scenes.dataset(100, SEED)
    latents = vae.encode(pipe.vae, images)
    assert latents.shape == (100, 8, 8, 8)
    assert abs(latents.mean().item()) < 0.1
    assert 0.9 < latents.std().item() < 1.1


@pytest.mark.parametrize("name", RANKERS)
def test_preferences_are_right_on_held_out_pairs(pipe, name):
    source = preferences.PairSource(1_000, SEED, pipe.vae)
    by_kind = preferences.accuracy(load_ranker(name), source, 400)
    assert sum(by_kind.values()) / len(by_kind) >= 0.85, by_kind


@pytest.mark.parametrize("name", RANKERS)
def test_preference_scores_have_the_size_of_pickscore(name):
    ranker = load_ranker(name)
    images, _, captions = clip.draw_set(100, SEED)
    with torch.no_grad():
        words = clip.text_features(ranker, clip.all_captions(processor(name).tokenizer))
        score = preferences.scores(ranker, words[captions], to_unit(images))
    assert 0.7 < score.mean().item() / 26 < 1.1


def test_clip_finds_the_same_scene_again(views):
    model = CLIPModel.from_pretrained(WEIGHTS / "clip", dtype=torch.float32).eval()
    with torch.no_grad():
        one, two = (clip.image_features(model, images) for images in views)
    assert clip.retrieval(one, two) >= 0.9


def test_dino_finds_the_same_scene_again(views):
    model = Dinov2Model.from_pretrained(WEIGHTS / "dino", dtype=torch.float32).eval()
    with torch.no_grad():
        one, two = (dino.image_features(model, images) for images in views)
    assert clip.retrieval(one, two) >= 0.9


def test_image_processors_are_the_real_ones_and_only_scale():
    images, _ = scenes.dataset(2, SEED)
    expected = dict.fromkeys((*RANKERS, "clip"), CLIPImageProcessor)
    for name, kind in (expected | {"dino": BitImageProcessor}).items():
        loaded = AutoImageProcessor.from_pretrained(WEIGHTS / name)
        assert isinstance(loaded, kind)
        pixels = loaded(torch.from_numpy(images), return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, to_unit(images))


def test_pictures_follow_their_prompts(pipe):
    """A coarse guard; the quality report measures more pictures."""
    shares, images = report.geneval(pipe, 5, steps=10)
    assert images.shape == (30, 3, 32, 32)
    assert shares["overall"] >= 0.3
