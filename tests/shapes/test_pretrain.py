import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusion3Pipeline
from transformers import CLIPModel, CLIPProcessor, Dinov2Model

from jobs.pretrain_shapes import clip, dino, flow, preferences, prompts, report, tiny, vae
from jobs.pretrain_shapes.common import Ema, Rates, fit, psnr, to_unit, warmup_cosine
from jobs.pretrain_shapes.views import augment, corrupt
from percent_ray.data.geneval_prompts import meaning
from percent_ray.recipe.paths import EMBEDDED
from percent_ray.shapes import scenes


def test_two_steps_of_everything_write_loadable_folders(tmp_path):
    """The trainings run and leave folders that plain from_pretrained reads."""
    vae.train(tmp_path / "sd3/vae", seed=0, steps=1, batch=2, scene_count=16)
    autoencoder = AutoencoderKL.from_pretrained(tmp_path / "sd3/vae", dtype=torch.float32)
    tiny.train(tmp_path / "tiny", autoencoder=autoencoder, seed=0, steps=1, batch=2, scene_count=16)
    small = AutoencoderTiny.from_pretrained(tmp_path / "tiny")
    assert small.config.latent_channels == vae.LATENT_CHANNELS
    flow.train(tmp_path / "sd3", seed=0, steps=2, batch=2, scene_count=8)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "sd3", text_encoder_3=None, tokenizer_3=None
    )
    assert pipe.transformer.config.in_channels == vae.LATENT_CHANNELS
    flow.distill(tmp_path / "sd3", seed=0, steps=1, batch=2, scene_count=8)
    student = flow.load(tmp_path / "sd3")
    for name in ("text_encoder", "text_encoder_2"):
        before, after = getattr(pipe, name).state_dict(), getattr(student, name).state_dict()
        assert all(torch.equal(before[key].float(), after[key]) for key in before)
    clip.train(tmp_path / "pickscore", seed=0, steps=2, batch=4, scene_count=16)
    preferences.train(
        tmp_path / "pickscore", vae=autoencoder, seed=0, steps=2, batch=4, scene_count=100
    )
    ranker = CLIPModel.from_pretrained(tmp_path / "pickscore")
    assert ranker.logit_scale.item() == pytest.approx(clip.MAX_SCALE, abs=1e-3)
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


def test_fit_is_adamw_with_a_schedule_a_clip_and_an_average():
    """Against the loop written out; the large loss makes the clip bite at each step."""
    torch.manual_seed(0)
    model, frozen = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1).requires_grad_(False)
    copy, unmoved = deepcopy(model), deepcopy(frozen)
    inputs, rates = torch.randn(7, 4, 3), Rates(0.1, 0.5, 0.3, beta2=0.9, warmup=2, save_every=3)
    saved = []
    fit(
        "line",
        [model, frozen],
        lambda step: (100 * (model(inputs[step]) - 1).square().mean(), ""),
        lambda averages: saved.append([deepcopy(average.state_dict()) for average in averages]),
        steps=7,
        rates=rates,
    )
    optimizer = torch.optim.AdamW(copy.parameters(), 0.1, betas=(0.9, 0.9), weight_decay=0.5)
    factor, means, expected = warmup_cosine(7, 2), deepcopy(copy), []
    for step in range(7):
        optimizer.param_groups[0]["lr"] = 0.1 * factor(step)
        gradients = torch.autograd.grad(
            100 * (copy(inputs[step]) - 1).square().mean(), list(copy.parameters())
        )
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 1
        for p, gradient in zip(copy.parameters(), gradients, strict=True):
            p.grad = gradient / norm
        optimizer.step()
        with torch.no_grad():
            share = min(0.3, (step + 2) / (step + 11))
            for mean, now in zip(means.parameters(), copy.parameters(), strict=True):
                mean.copy_(share * mean + (1 - share) * now)
        if step in (2, 5, 6):
            expected.append([deepcopy(means.state_dict()), unmoved.state_dict()])
    torch.testing.assert_close(saved, expected)
    torch.testing.assert_close(model.state_dict(), copy.state_dict())


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
    images = to_unit(scenes.dataset(4, 0)[0])
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


def test_the_shipped_prompt_files_are_those_of_the_job(tmp_path):
    """And none that is trained on is held out, though `geneval.jsonl` has its records often."""
    prompts.write(tmp_path)
    shipped = EMBEDDED / "prompts"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in shipped.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_text() == (shipped / path.name).read_text(), path.name
    train, geneval, test = (
        [json.loads(line) for line in (shipped / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "geneval", "test")
    )
    assert not [record for record in geneval if record in test or record not in train]
    held_out = {meaning(record) for record in test}
    assert not [record for record in geneval if meaning(record) in held_out]
    tags = [record["tag"] for record in geneval]
    shares = {tag: round(tags.count(tag) / len(tags), 2) for tag in dict.fromkeys(tags)}
    assert shares == {
        "two_object": 0.25,
        "counting": 0.2,
        "colors": 0.06,
        "position": 0.32,
        "color_attr": 0.16,
    }


def test_grid_lays_pictures_out_row_by_row(tmp_path):
    images = np.zeros((4, 3, 2, 2), np.uint8)
    images[1, 0] = 255
    report.grid(images, 2, tmp_path / "grid.png", zoom=1)
    sheet = cv2.imread(str(tmp_path / "grid.png"))
    assert sheet.shape == (4, 4, 3)
    assert (sheet[:2, 2:] == (0, 0, 255)).all()
    assert sheet.sum() == 4 * 255


@pytest.mark.parametrize("command", [["-m", "jobs.pretrain_shapes"], ["jobs/pretrain_shapes"]])
def test_the_job_names_what_it_knows(command):
    run = subprocess.run(
        [sys.executable, *command, "--only", "vae,gan"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "--only has no gan; choose from prompts, vae" in run.stderr
