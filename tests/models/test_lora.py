import json

import pytest
import torch

from tests.models.cases import TEXTS, case, noise, perturb, policy
from tests.tiny import TARGETS

LATER = ("use_rslora", "use_dora")
"""Of peft 0.7 and 0.9, which diffusers asks for."""


def test_adapter_is_a_function_of_the_seed(folder):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = policy(folder, seed=7, text=False).trainable()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = policy(folder, seed=7, text=False).trainable()
    other = policy(folder, seed=8, text=False).trainable()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_adapter_starts_without_effect(folder, pipeline):
    loaded = policy(folder, guidance=1)
    latents, sigma, condition = case(loaded)
    with torch.no_grad():
        expected = pipeline.transformer(
            hidden_states=latents,
            timestep=sigma * 1000,
            encoder_hidden_states=condition["prompt_embeds"],
            pooled_projections=condition["pooled_prompt_embeds"],
        ).sample
        velocity = loaded.velocity(latents, sigma, condition)
    torch.testing.assert_close(velocity, expected, rtol=1e-6, atol=1e-6)


def test_targets_are_suffixes(folder):
    names = list(policy(folder, text=False).trainable())
    adapted = {name.partition(".lora_")[0] for name in names}
    assert all(name.endswith(TARGETS) for name in adapted)
    assert not any("attn2" in name for name in adapted)
    assert len(names) == 2 * len(adapted)


@pytest.mark.parametrize("targets", [("attn.to_q", "attn.to_quack"), ()])
def test_target_that_matches_nothing_is_named(folder, targets):
    with pytest.raises(ValueError, match=r"model.lora_targets: .*(to_quack|\(\));"):
        policy(folder, text=False, lora_targets=targets)


def test_saved_weights_are_those_given(folder, tmp_path):
    """An average of the weights is saved while the network holds others."""
    from safetensors.torch import load_file

    loaded = policy(folder, text=False)
    weights = {n: noise(*p.shape) for n, p in loaded.trainable().items()}
    loaded.save(str(tmp_path), weights)
    (file,) = tmp_path.iterdir()
    saved = load_file(file)
    for name, weight in weights.items():
        torch.testing.assert_close(saved[f"transformer.{name.replace('.default', '')}"], weight)


def test_a_files_header_has_no_setting_that_an_older_peft_does_not_know(folder, tmp_path):
    """diffusers gives every one of them to LoraConfig. These are as old as diffusers' own LoRAs."""
    from safetensors import safe_open

    loaded = policy(folder, text=False)
    loaded.save(str(tmp_path), loaded.trainable())
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["lora_adapter_metadata"])
    names = {name.removeprefix("transformer.") for name in header}
    assert {"r", "lora_alpha", "target_modules"} <= names
    assert names <= {*("r", "lora_alpha", "target_modules", "lora_dropout", "bias"), *LATER}


def test_exception_inside_the_reference_leaves_the_adapter_on(folder):
    loaded = policy(folder)
    perturb(loaded.trainable())
    condition = loaded.encode(TEXTS)
    latents = noise(2, *loaded.latent_shape)
    sigma = torch.full((2,), 0.5)
    with torch.no_grad():
        before = loaded.velocity(latents, sigma, condition)
        with pytest.raises(RuntimeError), loaded.reference():
            raise RuntimeError
        torch.testing.assert_close(loaded.velocity(latents, sigma, condition), before)
    assert loaded.trainable()
