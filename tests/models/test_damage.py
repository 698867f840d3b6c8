"""Every file of the embedded world's pipeline and tiny decoder, damaged in every way: one line that
names the part and the file."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from percent_ray.models import decoder, sd3
from percent_ray.recipe.paths import EMBEDDED
from percent_ray.recipe.tree import Model
from tests import damages
from tests.models.cases import CPU

WORLD = EMBEDDED / "weights"
SETTINGS = "tokenizer_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return Path(shutil.copytree(WORLD, tmp_path_factory.mktemp("damage") / "whole"))


def read(folder: Path) -> None:
    """All that a run reads of a pipeline."""
    settings: dict[str, Any] = {"resolution": 32, "max_sequence_length": 1, "dtype": "float32"}
    model = Model(path=str(folder), lora_rank=4, **settings)
    policy = sd3.load_policy(model, seed=0, device=CPU, text=True)
    images = sd3.load_decoder(model, device=CPU)
    with torch.no_grad():
        condition = policy.encode(["a photo of a red square"])
        latents = torch.zeros(1, *policy.latent_shape)
        assert policy.velocity(latents, torch.tensor([0.5]), condition).isfinite().all()
    images.decode(latents)


def read_tiny(folder: Path) -> None:
    model = Model(path="shapes/sd3", dtype="float32")
    decoder.load_tiny(model, str(folder), default="", device=CPU)


FILES = {
    "pipeline": "model_index.json",
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer.json",
}
LARGE = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
CASES = [
    (part, file, name, damages.JSON[name]) for part, file in FILES.items() for name in damages.JSON
]
CASES += [
    (part, file, name, damages.WEIGHTS[name])
    for part, file in LARGE.items()
    for name in damages.WEIGHTS
]
CASES += [
    ("tokenizer", f"tokenizer/{SETTINGS}", name, damage) for name, damage in damages.JSON.items()
]
ODD: list[tuple[str, str, dict[str, Any]]] = [
    ("transformer", "transformer/config.json", {"_class_name": "UNet2DConditionModel"}),
    ("transformer", "transformer/config.json", {"patch_size": 0}),
    ("transformer", "transformer/config.json", {"num_layers": "x"}),
    ("transformer", "transformer/config.json", {"num_attention_heads": 3}),
    ("vae", "vae/config.json", {"_class_name": "AutoencoderTiny"}),
    ("vae", "vae/config.json", {"latent_channels": 4}),
    ("vae", "vae/config.json", {"block_out_channels": []}),
    ("vae", "vae/config.json", {"scaling_factor": None}),
    ("vae", "vae/config.json", {"scaling_factor": 0}),
    ("vae", "vae/config.json", {"shift_factor": float("nan")}),
    ("text_encoder", "text_encoder/config.json", {"model_type": "bert"}),
    ("text_encoder", "text_encoder/config.json", {"hidden_act": "nope"}),
    ("tokenizer", "text_encoder/config.json", {"eos_token_id": 7}),
    ("tokenizer", f"tokenizer/{SETTINGS}", {"model_max_length": 0}),
    ("tokenizer", f"tokenizer/{SETTINGS}", {"model_max_length": "x"}),
    ("tokenizer", f"tokenizer/{SETTINGS}", {"model_max_length": 77}),
    ("scheduler", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}),
    ("scheduler", "scheduler/scheduler_config.json", {"shift": 0}),
    ("scheduler", "scheduler/scheduler_config.json", {"shift": -1}),
    ("scheduler", "scheduler/scheduler_config.json", {"shift": "x"}),
    ("scheduler", "scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
    ("scheduler", "scheduler/scheduler_config.json", {"num_train_timesteps": -5}),
    ("scheduler", "scheduler/scheduler_config.json", {"invert_sigmas": True}),
    ("scheduler", "scheduler/scheduler_config.json", {"stochastic_sampling": True}),
    ("transformer", "model_index.json", {"transformer": [None, None]}),
    ("vae", "model_index.json", {"vae": "x"}),
    ("text_encoder", "model_index.json", {"text_encoder": 5}),
    ("tokenizer_2", "model_index.json", {"tokenizer_2": ["transformers"]}),
]
CASES += [(part, file, str(keys), damages.changed(**keys)) for part, file, keys in ODD]


@pytest.mark.parametrize(
    ("part", "file", "damage"),
    [(part, file, damage) for part, file, _, damage in CASES],
    ids=[f"{file} {name}" for _, file, name, _ in CASES],
)
def test_a_damaged_file_is_one_line_with_its_part_and_its_name(whole, tmp_path, part, file, damage):
    folder = damages.linked(whole / "sd3", tmp_path / "model")
    damage(folder / file)
    said = refused(lambda: read(folder))
    assert said.startswith(f"model.path: {part} of {folder}"), said
    assert Path(file).stem in said, said


@pytest.mark.parametrize("damage", damages.WEIGHTS.values(), ids=damages.WEIGHTS)
def test_a_damaged_tiny_decoder_too(whole, tmp_path, damage):
    folder = damages.linked(whole / "tiny", tmp_path / "tiny")
    damage(folder / "diffusion_pytorch_model.safetensors")
    said = refused(lambda: read_tiny(folder))
    assert said.startswith(f"perceptual.tiny_path: decoder of {folder}"), said
    assert "diffusion_pytorch_model" in said


PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "scheduler")
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "gone": damages.gone,
    "empty": damages.a_folder,
    "a file": lambda folder: damages.put(folder, "x"),
    "dangling link": damages.dangling,
}


@pytest.mark.parametrize("damage", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_folder_is_one_line_with_its_part(whole, tmp_path, part, damage):
    folder = damages.linked(whole / "sd3", tmp_path / "model")
    damage(folder / part)
    said = refused(lambda: read(folder))
    assert re.search(rf"^model\.path: {part} of .*: (no folder {part} is|has no)", said), said


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damages.gone, "^no folder "),
        (damages.a_folder, r"^model\.path: pipeline of .* has no model_index\.json"),
        (lambda folder: damages.put(folder, "x"), "is a single file; make a folder of it"),
    ],
)
def test_no_pipeline_at_all_is_one_line(whole, tmp_path, damage, expected):
    folder = damages.linked(whole / "sd3", tmp_path / "model")
    damage(folder)
    assert re.search(expected, refused(lambda: read(folder)))


def test_the_whole_folder_is_read(whole):
    read(whole / "sd3")
    read_tiny(whole / "tiny")


def refused(load: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load()
    said = str(caught.value)
    assert "\n" not in said
    assert "; " in said, said  # and what to set
    return said
