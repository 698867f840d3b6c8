import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import CLIPModel, CLIPProcessor, Dinov2Model

from percent_ray.shapes import scenes
from percent_ray.shapes.pretrain import clip, dino, flow, preferences, prompts, report, vae
from percent_ray.shapes.pretrain.common import Ema, psnr, warmup_cosine
from percent_ray.shapes.pretrain.views import augment, corrupt


def test_two_steps_of_everything_write_loadable_folders(tmp_path):
    """The trainings run and leave folders that plain from_pretrained reads."""
    vae.train(tmp_path / "sd3/vae", seed=0, steps=1, batch=2, scene_count=16)
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "sd3/vae", dtype=torch.float32)
    flow.train(tmp_path / "sd3", seed=0, steps=2, batch=2, scene_count=8)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "sd3", text_encoder_3=None, tokenizer_3=None
    )
    assert pipe.transformer.config.in_channels == vae.LATENT_CHANNELS
    clip.train(tmp_path / "clip", seed=0, steps=2, batch=4, scene_count=16)
    start = CLIPModel.from_pretrained(tmp_path / "clip", dtype=torch.float32)
    preferences.train(
        tmp_path / "pickscore",
        start=start,
        vae=autoencoder,
        seed=0,
        steps=2,
        batch=4,
        scene_count=100,
    )
    CLIPModel.from_pretrained(tmp_path / "pickscore")
    CLIPProcessor.from_pretrained(tmp_path / "pickscore")
    dino.train(tmp_path / "dino", seed=0, steps=2, batch=4, scene_count=16)
    Dinov2Model.from_pretrained(tmp_path / "dino")


def test_schedule_warms_up_and_ends_at_zero():
    factor = warmup_cosine(100, 10)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)


def test_ema_follows_and_leaves_the_module_alone():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = Ema([module], 0.9)
    torch.nn.init.ones_(module.weight)
    for _ in range(200):
        ema.update()
    assert ema.average[0].weight.item() == pytest.approx(1.0, abs=1e-3)
    assert module.weight.item() == 1.0


def test_psnr_of_a_known_error():
    images = np.full((2, 3, 4, 4), 100, np.uint8)
    assert psnr(images, images + 10) == pytest.approx(20 * np.log10(255 / 10))


def test_truth_holds_the_own_caption_and_its_generalisations():
    number = {record["prompt"]: i for i, record in enumerate(clip.RECORDS)}
    items = (scenes.Item("circle", "red", 8, 16, 5), scenes.Item("square", "blue", 24, 16, 5))
    row = clip.truth([scenes.Scene(items, (128, 128, 128))])[0]
    true = {prompt for prompt, i in number.items() if row[i]}
    assert true == {
        "a photo of a circle",
        "a photo of a square",
        "a photo of a circle and a square",
        "a photo of a square and a circle",
        "a photo of a red circle",
        "a photo of a blue square",
        "a photo of a circle left of a square",
        "a photo of a square right of a circle",
        "a photo of a red circle and a blue square",
        "a photo of a blue square and a red circle",
    }


def test_rejected_pictures_differ_in_the_way_that_they_should():
    torch.manual_seed(0)
    source = preferences.PairSource(150, 5, vae.build())
    false = source.draw("aligned", 20)
    assert false.preferred.shape == false.rejected.shape == (20, 3, 32, 32)
    assert not torch.equal(false.preferred, false.rejected)
    dull = preferences.contrast(
        scenes.Scene((scenes.Item("circle", "green", 16, 16, 6),), (60, 150, 80))
    )
    bright = preferences.contrast(
        scenes.Scene((scenes.Item("circle", "green", 16, 16, 6),), (240, 240, 240))
    )
    assert dull < 60 < bright


@pytest.mark.parametrize("kind", ["blur", "noise", "melt"])
def test_corruptions_change_pictures_and_keep_their_range(kind):
    torch.manual_seed(0)
    images = torch.from_numpy(scenes.dataset(4, 0)[0]).float() / 127.5 - 1
    spoiled = corrupt(vae.build(), images, kind)
    assert spoiled.shape == images.shape
    assert spoiled.abs().max() <= 1.0001
    assert (spoiled - images).abs().mean() > 0.01
    assert (augment(images) - images).abs().mean() < 0.3


def test_prompt_files_are_json_lines(tmp_path):
    prompts.write(tmp_path)
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    assert len(lines) == sum(prompts.TEST_COUNTS.values())
    assert all({"tag", "include", "prompt"} <= json.loads(line).keys() for line in lines)


def test_grid_lays_pictures_out_row_by_row(tmp_path):
    images = np.zeros((4, 3, 2, 2), np.uint8)
    images[1, 0] = 255
    report.grid(images, 2, tmp_path / "grid.png", zoom=1)
    sheet = cv2.imread(str(tmp_path / "grid.png"))
    assert sheet.shape == (4, 4, 3)
    assert (sheet[:2, 2:] == (0, 0, 255)).all()
    assert sheet.sum() == 4 * 255


def test_the_job_names_what_it_knows():
    job = Path(__file__).parents[2] / "jobs" / "pretrain_shapes.py"
    run = subprocess.run(
        [sys.executable, str(job), "--only", "vae,gan"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "--only has no gan; choose from prompts, vae" in run.stderr
