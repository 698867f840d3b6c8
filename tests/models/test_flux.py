import pytest
import torch
from diffusers import FluxPipeline

from percent_ray.flow.sampler import ode
from percent_ray.models import flux
from tests.models.cases import CPU, TEXTS, case, noise
from tests.models.families import flux_sample
from tests.tiny import SCALE, build_flux, flux_config, load_flux


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return build_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def pipeline(where):
    return load_flux(where)


def policy(folder, **changes):
    return flux.load_policy(flux_config(folder, **changes), seed=0, device=CPU, text=True)


def test_encode_is_the_pipelines(where, pipeline):
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt(TEXTS, max_sequence_length=8)
        empty, empty_pooled, _ = pipeline.encode_prompt(["", ""], max_sequence_length=8)
    condition = policy(where).encode(TEXTS)
    assert list(condition) == ["prompt_embeds", "pooled_prompt_embeds"]
    assert condition["prompt_embeds"].shape == (2, 8, 48)
    both = policy(where, true_cfg=2.0).encode(TEXTS)
    torch.testing.assert_close(both["prompt_embeds"], embeds, rtol=0, atol=0)
    torch.testing.assert_close(both["pooled_prompt_embeds"], pooled, rtol=0, atol=0)
    torch.testing.assert_close(both["negative_prompt_embeds"], empty, rtol=0, atol=0)
    torch.testing.assert_close(both["negative_pooled_prompt_embeds"], empty_pooled, rtol=0, atol=0)


def test_tokens_and_their_places_are_the_pipelines():
    latents = noise(2, 4, 6, 8)
    tokens = flux.pack(latents)
    expected = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(tokens, expected)
    assert tokens.is_contiguous()
    assert torch.equal(flux.unpack(tokens, 3, 4), latents)
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 4, CPU, torch.float32)
    assert torch.equal(flux.image_ids(3, 4), ids)


def test_true_guidance_is_the_pipelines_with_an_empty_negative_prompt(where, pipeline):
    loaded = policy(where, guidance=2.0, true_cfg=3.0)
    start, condition = noise(2, *loaded.latent_shape), loaded.encode(TEXTS)
    latents = ode(lambda x, sigma: loaded.velocity(x, sigma, condition), start, loaded.sigmas(4))
    tokens = pipeline(
        TEXTS,
        negative_prompt=["", ""],
        true_cfg_scale=3.0,
        latents=flux.pack(start),
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=2.0,
        max_sequence_length=8,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, flux.unpack(tokens, 4, 4), rtol=1e-4, atol=1e-4)


def test_the_guidance_is_embedded(where):
    """At no second call, and with gradients through it."""
    one, two = (policy(where, guidance=guidance) for guidance in (1.0, 3.5))
    inputs = case(one)
    calls = []
    two.module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert (one.velocity(*inputs) - two.velocity(*inputs)).abs().max() > 1e-4
    assert len(calls) == 1


def test_a_bfloat16_model_is_told_the_time_as_the_pipeline_tells_it(where):
    """0.273 x 1000 is 272 in bfloat16, and 0.273 itself becomes 274 thousandths."""
    loaded = policy(where, dtype="bfloat16")
    seen = []
    hook = lambda _, __, kwargs: seen.append(kwargs["timestep"])  # noqa: E731
    loaded.module.register_forward_pre_hook(hook, with_kwargs=True)
    latents, _, condition = case(loaded)
    with torch.no_grad():
        loaded.velocity(latents, torch.tensor([0.273, 1.0]), condition)
    expected = torch.tensor([273.0, 1000.0]).bfloat16() / 1000
    assert torch.equal(seen[0], expected)
    assert (seen[0].float() * 1000).bfloat16().tolist() == [272.0, 1000.0]


def test_a_model_without_a_guidance_embedding_says_that_it_reads_none(tmp_path):
    folder = build_flux(tmp_path / "schnell", embeds=False)
    loaded = policy(folder)
    assert loaded.describe().endswith("no guidance embedding, model.guidance is not read")
    start, condition = noise(2, *loaded.latent_shape), loaded.encode(TEXTS)
    latents = ode(lambda x, sigma: loaded.velocity(x, sigma, condition), start, loaded.sigmas(4))
    expected = flux_sample(load_flux(folder), TEXTS, start, 4, 3.5)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_latents_are_of_the_recipes_height_and_width(where):
    assert policy(where, resolution=(12, 16)).latent_shape == (4, 12 // SCALE, 16 // SCALE)
    with pytest.raises(ValueError, match=r"resolution \(12, 18\) .* set a multiple of 4$"):
        policy(where, resolution=(12, 18))


def test_without_t5_there_are_no_words(where):
    with pytest.raises(ValueError, match=r"^model\.t5 false: FLUX reads its prompts by T5"):
        policy(where, t5=False)


def test_a_pipeline_of_another_family_is_refused(folder):
    with pytest.raises(ValueError, match=r"class StableDiffusion3Pipeline, not FluxPipeline; set"):
        policy(folder)
