"""The decoder, and what is refused: resolutions and folders that do not fit."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from percent_ray.models import decoder, flux, sd3
from percent_ray.recipe.tree import Model
from tests.models.cases import CPU, noise, policy
from tests.tiny import build_tiny, sd3_config


@pytest.mark.parametrize(("resolution", "hint"), [(18, "multiple of 4"), (64, "up to 32")])
def test_resolution_that_does_not_fit(folder, resolution, hint):
    with pytest.raises(ValueError, match=f"model.resolution {resolution} .*{hint}"):
        policy(folder, resolution=resolution)


def test_folder_that_is_no_sd3_pipeline(folder, tmp_path):
    for load in (
        lambda where: policy(where),
        lambda where: sd3.load_decoder(sd3_config(where), device=CPU),
    ):
        with pytest.raises(ValueError, match=r"^model\.path: pipeline of .*model_index\.json.*$"):
            load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="is of class FluxPipeline, not StableDiffusion3Pipeline"):
        policy(tmp_path)


def test_decode_is_the_pipelines_picture(folder, pipeline):
    decoder = sd3.load_decoder(sd3_config(folder, dtype="bfloat16"), device=CPU)
    latents = 2 * noise(3, 4, 8, 8)
    images = decoder.decode(latents)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 16, 16)
    with torch.no_grad():
        vae = pipeline.vae
        raw = latents / vae.config.scaling_factor + vae.config.shift_factor
        pictures = pipeline.image_processor.postprocess(vae.decode(raw).sample, output_type="pil")
    for image, picture in zip(images, pictures, strict=True):
        difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(picture).astype(int)
        assert abs(difference).max() <= 1


def test_decode_refuses_pixels_that_are_not_finite(folder):
    decoder = sd3.load_decoder(sd3_config(folder), device=CPU)
    latents = torch.zeros(3, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^the policy's latents of 1 of 3 images .* is image 1\)"):
        decoder.decode(latents)
    decoder.vae.decoder.conv_out.bias.data[:] = float("inf")
    with pytest.raises(ValueError, match=r"^AutoencoderKL in .* of latents that are; give another"):
        decoder.decode(torch.zeros(1, 4, 8, 8))


def tiny(folder, path, **changes):
    model = sd3_config(folder, **changes)
    return decoder.load_tiny(model, str(path), default="nobody/nothing", device=CPU)


def test_a_tiny_decoders_pictures_are_those_of_the_policys_own_latents(folder, tmp_path):
    """Also where its config has a scale and a shift: those of TAESD's family are not to be used."""
    build_tiny(tmp_path, scaling_factor=2.0, shift_factor=0.5)
    loaded = tiny(folder, tmp_path, dtype="bfloat16")
    latents = 2 * noise(3, 4, 8, 8)
    with torch.no_grad():
        pictures = AutoencoderTiny.from_pretrained(tmp_path).decode(latents).sample
    expected = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert expected.shape == (3, 3, 16, 16)
    assert expected.float().std() > 1
    images = loaded.decode(latents)
    assert images.dtype == torch.uint8
    assert (images.int() - expected.int()).abs().max() <= 1
    assert f"transitions: AutoencoderTiny of {tmp_path}, " in loaded.describe()
    with pytest.raises(ValueError, match=r"^the policy's latents of 1 of 1 images"):
        loaded.decode(torch.full((1, 4, 8, 8), float("nan")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latent_channels": 16}, "has 16 latent channels and scales by 2, the VAE of .* has 4 "),
        ({"upsampling_scaling_factor": 4}, "has 4 latent channels and scales by 4, .* by 2; give"),
    ],
)
def test_a_tiny_decoder_of_other_latents_is_one_line(folder, tmp_path, changes, said):
    build_tiny(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"^perceptual\.tiny_path: decoder of .*{said}") as caught:
        tiny(folder, tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_tiny_decoder_is_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match="is of class AutoencoderKL, not AutoencoderTiny; give"):
        tiny(folder, folder / "vae")
    build_tiny(tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    state = load_file(file)
    del state["decoder.layers.0.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^perceptual\.tiny_path: decoder of .* 1 missing"):
        tiny(folder, tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"^perceptual\.tiny_path: decoder of .*has no model\."):
        tiny(folder, tmp_path)


def test_an_empty_path_is_the_familys_own_or_the_embedded_worlds(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for loaders, name in ((sd3, "madebyollin/taesd3"), (flux, "madebyollin/taef1")):
        with pytest.raises(ValueError, match=f"perceptual.tiny_path: decoder of {name}: "):
            decoder.load_tiny(sd3_config(folder), "", default=loaders.TINY, device=CPU)
    world = Model(path="shapes/sd3")
    found = decoder.load_tiny(world, "", default=sd3.TINY, device=CPU)
    assert "AutoencoderTiny of " in found.describe()
    assert found.decode(noise(2, 8, 8, 8)).shape == (2, 3, 32, 32)
