"""The decoder, and what is refused: resolutions and folders that do not fit."""

import json

import numpy as np
import pytest
import torch

from percent_ray.models import sd3
from tests.models.cases import CPU, noise, policy
from tests.tiny import sd3_config


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
    with pytest.raises(ValueError, match="not finite"):
        decoder.decode(torch.full((1, 4, 8, 8), float("nan")))
