import json
import shutil
from itertools import pairwise

import pytest
import torch

from percent_ray.models import base, sd3
from tests.models.cases import CPU, TEXTS, case, noise, perturb, policy
from tests.tiny import load_sd3, sd3_config


def test_family_is_found_and_helpers_are_not_families():
    assert base.family("sd3") is sd3
    with pytest.raises(ValueError, match=r"unknown 'lora'; known are (.*, )?sd3"):
        base.family("lora")


@pytest.mark.parametrize("t5", [False, True])
def test_encode_is_the_pipelines(folder, t5_folder, t5):
    where = t5_folder if t5 else folder
    whole = load_sd3(where, t5=t5)
    with torch.no_grad():
        expected = whole.encode_prompt(TEXTS, None, None, max_sequence_length=8)
    condition = policy(where).encode(TEXTS)
    names = ("prompt_embeds", "negative_prompt_embeds")
    pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    assert set(condition) == {*names, *pooled}
    for name, tensor in zip((*names, *pooled), expected, strict=True):
        torch.testing.assert_close(condition[name], tensor, rtol=0, atol=0)
        assert not condition[name].requires_grad
    assert condition["prompt_embeds"].shape == (2, 16 + 8, 48)
    assert condition["prompt_embeds"][:, 16:].any() == t5


def test_t5_is_left_out_on_request(t5_folder):
    condition = policy(t5_folder, t5=False).encode(TEXTS)
    assert not condition["prompt_embeds"][:, 16:].any()


def test_only_the_parts_asked_for_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / "text_encoder")
    (tmp_path / "sd3" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    loaded = policy(tmp_path / "sd3", text=False)
    with pytest.raises(ValueError, match="text=True"):
        loaded.encode(TEXTS)
    shutil.copytree(folder, tmp_path / "decoder")
    shutil.rmtree(tmp_path / "decoder" / "transformer")
    assert sd3.load_decoder(sd3_config(tmp_path / "decoder"), device=CPU)


def test_guidance_is_the_pipelines_arithmetic(folder, pipeline):
    loaded = policy(folder)
    latents, sigma, condition = case(loaded)
    with torch.no_grad():
        velocity = loaded.velocity(latents, sigma, condition)
        both = pipeline.transformer(
            hidden_states=torch.cat([latents] * 2),
            timestep=torch.cat([sigma * 1000] * 2),
            encoder_hidden_states=torch.cat(
                [condition["negative_prompt_embeds"], condition["prompt_embeds"]]
            ),
            pooled_projections=torch.cat(
                [condition["negative_pooled_prompt_embeds"], condition["pooled_prompt_embeds"]]
            ),
        ).sample
    unconditional, conditional = both.chunk(2)
    expected = unconditional + 4.5 * (conditional - unconditional)
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)
    assert velocity.dtype == torch.float32


def test_guidance_one_is_one_pass_without_negatives(folder):
    loaded = policy(folder, guidance=1)
    latents, sigma, condition = case(loaded)
    assert set(condition) == {"prompt_embeds", "pooled_prompt_embeds"}
    calls = []
    loaded.module.register_forward_hook(lambda *_: calls.append(1))
    loaded.velocity(latents, sigma, condition)
    assert len(calls) == 1


def test_gradient_comes_from_the_conditional_branch_alone(folder):
    loaded = policy(folder)
    latents, sigma, condition = case(loaded)
    perturb(loaded.trainable())

    def gradients(compute):
        loaded.module.zero_grad()
        compute().square().sum().backward()
        return [p.grad.clone() for p in loaded.trainable().values()]

    found = gradients(lambda: loaded.velocity(latents, sigma, condition))
    swapped = {k: condition[k.removeprefix("negative_")] for k in condition}
    swapped |= {k: condition[f"negative_{k}"] for k in ("prompt_embeds", "pooled_prompt_embeds")}
    single = policy(folder, guidance=1)
    single.module.load_state_dict(loaded.module.state_dict())
    fixed = single.velocity(latents, sigma, swapped).detach()
    loaded_single = gradients(
        lambda: fixed + 4.5 * (_conditional(loaded, latents, sigma, condition) - fixed)
    )
    for one, other in zip(found, loaded_single, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _conditional(loaded, latents, sigma, condition):
    return loaded.module(
        hidden_states=latents,
        timestep=sigma * 1000,
        encoder_hidden_states=condition["prompt_embeds"],
        pooled_projections=condition["pooled_prompt_embeds"],
    ).sample


def test_one_condition_row_serves_a_batch(folder):
    loaded = policy(folder)
    latents, sigma, _ = case(loaded)
    condition = loaded.encode(TEXTS[:1])
    repeated = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in condition.items()}
    with torch.no_grad():
        one = loaded.velocity(latents, sigma, condition)
        torch.testing.assert_close(one, loaded.velocity(latents, sigma, repeated))


def test_sampling_is_the_pipelines(folder, pipeline):
    loaded = policy(folder)
    start = noise(2, *loaded.latent_shape, seed=3)
    expected = pipeline(
        TEXTS,
        latents=start,
        height=16,
        width=16,
        num_inference_steps=6,
        guidance_scale=4.5,
        max_sequence_length=8,
        output_type="latent",
    ).images
    condition, sigmas, latents = loaded.encode(TEXTS), loaded.sigmas(6), start
    with torch.no_grad():
        for now, then in pairwise(sigmas):
            velocity = loaded.velocity(latents, now.expand(2), condition)
            latents = latents + (then - now) * velocity
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_sigmas_of_sd35_medium(folder):
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    loaded = policy(folder, text=False)
    sigmas = loaded.sigmas(10)
    torch.testing.assert_close(sigmas, torch.tensor(expected), rtol=0, atol=5e-5)
    loaded.sigmas(4)
    assert len(sigmas) == 11


def test_dynamic_shifting_is_the_pipelines(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "sd3")
    file = tmp_path / "sd3" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": True}))
    whole = load_sd3(tmp_path / "sd3")
    options = {"num_inference_steps": 5, "max_sequence_length": 8, "output_type": "latent"}
    whole("a", height=16, width=16, **options)
    torch.testing.assert_close(
        policy(tmp_path / "sd3", text=False).sigmas(5), whole.scheduler.sigmas.cpu()
    )


@pytest.mark.parametrize("rank", [4, 0])
def test_reference_is_the_model_before_training(folder, rank):
    loaded = policy(folder, lora_rank=rank)
    latents, sigma, condition = case(loaded)
    with torch.no_grad():
        before = loaded.velocity(latents, sigma, condition)
        perturb(loaded.trainable())
        names = list(loaded.trainable())
        after = loaded.velocity(latents, sigma, condition)
        with loaded.reference():
            reference = loaded.velocity(latents, sigma, condition)
        again = loaded.velocity(latents, sigma, condition)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(reference, before, rtol=0, atol=0)
    torch.testing.assert_close(again, after, rtol=0, atol=0)
    assert list(loaded.trainable()) == names


def test_full_fine_tuning_trains_everything_and_loads_back(folder, tmp_path):
    from diffusers import SD3Transformer2DModel

    loaded = policy(folder, lora_rank=0)
    assert len(loaded.trainable()) == len(list(loaded.module.parameters()))
    weights = {n: p.detach() + 0.1 for n, p in loaded.trainable().items()}
    loaded.save(str(tmp_path), weights)
    read = SD3Transformer2DModel.from_pretrained(tmp_path, use_safetensors=True)
    for name, parameter in read.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=0, atol=0)
    torch.testing.assert_close(read.pos_embed.pos_embed, loaded.module.pos_embed.pos_embed)


@pytest.mark.parametrize("rank", [0, 4])
def test_load_takes_what_save_wrote_and_refuses_another_model(folder, tmp_path, rank):
    loaded, other = policy(folder, lora_rank=rank), policy(folder, lora_rank=rank, seed=1)
    weights = {n: p.detach() + 0.1 for n, p in loaded.trainable().items()}
    loaded.save(str(tmp_path), weights)
    other.load(str(tmp_path))
    for name, parameter in other.trainable().items():
        assert torch.equal(parameter, weights[name])
    if rank:
        with pytest.raises(ValueError, match=r"set model\.lora_rank and lora_targets"):
            policy(folder, lora_rank=rank * 2).load(str(tmp_path))


def test_gradient_checkpointing_changes_no_gradient(folder):
    found = []
    for checkpointing in (False, True):
        loaded = policy(folder, gradient_checkpointing=checkpointing)
        assert loaded.module.is_gradient_checkpointing == checkpointing
        perturb(loaded.trainable())
        loaded.velocity(*case(loaded)).square().sum().backward()
        found.append([p.grad for p in loaded.trainable().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_model_keeps_float32_adapter(folder):
    loaded = policy(folder, dtype="bfloat16")
    latents, sigma, condition = case(loaded)
    velocity = loaded.velocity(latents, sigma, condition)
    velocity.sum().backward()
    assert velocity.dtype == torch.float32
    assert condition["prompt_embeds"].dtype == torch.bfloat16
    trained = loaded.trainable()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = [p for n, p in loaded.module.named_parameters() if n not in trained]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    exact = policy(folder).velocity(latents, sigma, policy(folder).encode(TEXTS))
    assert (velocity - exact).abs().max() < 0.1 * exact.abs().max()
