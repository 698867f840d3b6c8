import shutil

import pytest
import torch

from percent_ray.models import sd3
from tests.models.cases import CPU, TEXTS, case, perturb, policy
from tests.models.families import sd3_predict
from tests.tiny import load_sd3, sd3_config


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


def test_guidance_of_flux_is_refused(folder):
    with pytest.raises(ValueError, match=r"^model\.true_cfg 2 is FLUX.s; "):
        policy(folder, true_cfg=2.0)


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
        lambda: fixed + 4.5 * (sd3_predict(loaded.module, latents, sigma, condition) - fixed)
    )
    for one, other in zip(found, loaded_single, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_one_condition_row_serves_a_batch(folder):
    loaded = policy(folder)
    latents, sigma, _ = case(loaded)
    condition = loaded.encode(TEXTS[:1])
    repeated = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in condition.items()}
    with torch.no_grad():
        one = loaded.velocity(latents, sigma, condition)
        torch.testing.assert_close(one, loaded.velocity(latents, sigma, repeated))


def test_sigmas_of_sd35_medium(folder):
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    loaded = policy(folder, text=False)
    sigmas = loaded.sigmas(10)
    torch.testing.assert_close(sigmas, torch.tensor(expected), rtol=0, atol=5e-5)
