"""Pipelines as people have them on disk or in the hub's cache, whole and damaged."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from percent_ray.flow.sampler import ode
from percent_ray.models import sd3
from percent_ray.models.base import family
from percent_ray.recipe.discover import FAMILIES as FOUND
from percent_ray.recipe.load import RecipeError, load
from tests.models.cases import CPU, TEXTS, noise
from tests.models.families import FAMILIES, sd3_sample
from tests.tiny import SCALE, build_sd3, load_sd3, sd3_config

ROOT = Path(__file__).parents[2]
KINDS = {kind.name: kind for kind in FAMILIES}
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> dict[str, Path]:
    """A pipeline of each family, each with T5."""
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    KINDS["flux"].build(folders["flux"])
    build_sd3(folders["sd3"], t5=True)
    return folders


def copy(whole: dict[str, Path], name: str, to: Path) -> Path:
    return Path(shutil.copytree(whole[name], to / "model"))


def read(name: str, folder: Path, **changes: Any) -> Any:
    """Every part of a pipeline."""
    settings = KINDS[name].settings(folder, **changes)
    policy = family(name).load_policy(settings, seed=0, device=CPU, text=True)
    return policy, family(name).load_decoder(settings, device=CPU)


def config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    [file] = folder.glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def variant(folder: Path, *names: str) -> None:
    [file] = folder.glob("*.safetensors")
    for name in names:
        shutil.copy(file, file.with_name(f"{file.stem}.{name}.safetensors"))
    file.unlink()


def pickled(folder: Path) -> None:
    [file] = folder.glob("*.safetensors")
    stem = {"model": "pytorch_model"}.get(file.stem, file.stem)
    torch.save(load_file(file), folder / f"{stem}.bin")
    file.unlink()


def sharded(folder: Path) -> None:
    [file] = folder.glob("*.safetensors")
    shards = {name: f"{file.stem}-00001-of-00002.safetensors" for name in load_file(file)}
    shards[next(iter(shards))] = f"{file.stem}-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": shards}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.rename(file.with_name(f"{file.stem}-00001-of-00002.safetensors"))


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As peft names the weights of a model that it has adapters in."""
    return {re.sub(r"\.(weight|bias)$", r".base_layer.\1", name): w for name, w in state.items()}


def eight_bits(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}


MODELS = ("transformer", "vae", "text_encoder", "t5")
"""The parts with weights; `t5` is text_encoder_3 of SD3 and text_encoder_2 of FLUX."""
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, r": no folder PART is there; "),
    "no config": (lambda p: (p / "config.json").unlink(), r": has no config\.json; "),
    "no JSON": (lambda p: (p / "config.json").write_text("{"), r": its config\.json is no JSON; "),
    "list": (lambda p: (p / "config.json").write_text("[]"), r": its config\.json holds no settin"),
    "no weights": (
        lambda p: [file.unlink() for file in p.glob("*.safetensors")],
        r": has no model\.safetensors or diffusion_pytorch_model\.safetensors; ",
    ),
    "cut short": (
        lambda p: [file.write_bytes(file.read_bytes()[:1000]) for file in p.glob("*.safetensors")],
        r": its \w+\.safetensors is torn or no safetensors file: 1,000 bytes, .*; ",
    ),
    "half of the weights": (
        lambda p: tensors(p, lambda state: dict(list(state.items())[::2])),
        r" does not fit \w+: \d+ missing \(.*\): \w+\.safetensors is not what config\.json descri",
    ),
    "one of two shards": (sharded, r": 1 of 2 weight files are missing \(.*00002.*\); give a fol"),
    "LoRA layers inside": (
        lambda p: tensors(p, wrapped),
        r": \w+\.safetensors has \d+ weights inside LoRA layers of peft \(.*\); give a folder ",
    ),
    "another library's names": (
        lambda p: tensors(p, lambda state: {f"base_model.model.{n}": w for n, w in state.items()}),
        r" does not fit \w+: \d+ missing \(.*\); \d+ unexpected \(.*\): \w+\.safet",
    ),
    "two variants": (
        lambda p: variant(p, "fp16", "bf16"),
        r": has its weights only as bf16 and fp16 variants; give a folder with the one to read$",
    ),
    "pickled": (pickled, r": has only pickled weights \(\w+\.bin\); convert them: python -c "),
    "a setting of another type": (
        lambda p: config(p, **dict.fromkeys(("num_layers", "hidden_size", "latent_channels"), "x")),
        r": its config\.json (makes no|gives) .+; ",
    ),
    "fp8 tensors": (
        lambda p: tensors(p, eight_bits),
        r": \w+\.safetensors: is quantized \(F8_E4M3\), which is not supported; give a folder of u",
    ),
    "gguf": (
        lambda p: [file.rename(file.with_suffix(".gguf")) for file in p.glob("*.safetensors")],
        r": is quantized \(GGUF\), which is not supported; give a folder of unquantized weights$",
    ),
} | {
    f"quantized by {method}": (
        partial(config, quantization_config={"quant_method": method}),
        rf": is quantized \({method}\), which is not supported; give a folder of unquantized weigh",
    )
    for method in ("bitsandbytes", "gguf", "torchao", "quanto", "fp8", "gptq")
}
"""By name what is done to the folder of a part, and what is said about it."""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", MODELS)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_part_is_one_line_that_says_what_to_set(whole, tmp_path, name, part, damage):
    folder = copy(whole, name, tmp_path)
    if part == "t5":
        part = "text_encoder_2" if name == "flux" else "text_encoder_3"
    spoil, said = DAMAGES[damage]
    spoil(folder / part)
    with pytest.raises(ValueError, match=rf"^model\.path: {part} of ") as caught:
        read(name, folder)
    assert re.search(said.replace("PART", part), str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search(r"; (give|set|convert|FLUX reads its prompts by T5: set) ", str(caught.value))


SMALL_DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no index": (
        "pipeline",
        lambda p: (p / "model_index.json").unlink(),
        r": has no model_index\.json; give a folder as DiffusionPipeline\.save_pretrained",
    ),
    "an index that is no JSON": (
        "pipeline",
        lambda p: (p / "model_index.json").write_text("{"),
        r": its model_index\.json is no JSON; give a folder",
    ),
    "no scheduler": (
        "scheduler",
        lambda p: shutil.rmtree(p / "scheduler"),
        r": no folder scheduler is there; give a folder as FlowMatchEuler",
    ),
    "no tokenizer": (
        "tokenizer",
        lambda p: shutil.rmtree(p / "tokenizer"),
        r": no folder tokenizer is there; give a folder as CLIPTokenizer",
    ),
    "an empty tokenizer": (
        "tokenizer",
        lambda p: [file.unlink() for file in (p / "tokenizer").iterdir()],
        r": has none of tokenizer\.json, vocab\.json, .*; give a folder as CLIPTokenizer",
    ),
    "a tokenizer that is no JSON": (
        "tokenizer",
        lambda p: [file.write_text("{") for file in (p / "tokenizer").iterdir()],
        r": its tokenizer\.json is no JSON; give a folder as CLIPTokenizer",
    ),
}


@pytest.mark.parametrize("damage", SMALL_DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_small_file_is_one_line_that_says_what_to_set(whole, tmp_path, name, damage):
    folder = copy(whole, name, tmp_path)
    part, spoil, said = SMALL_DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ValueError, match=rf"^model\.path: {part} of .*{said}") as caught:
        read(name, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gone", ["text_encoder", "tokenizer"])
def test_t5_in_the_index_and_not_on_disk(whole, tmp_path, gone):
    sd3 = copy(whole, "sd3", tmp_path / "sd3")
    shutil.rmtree(sd3 / f"{gone}_3")
    with pytest.raises(
        ValueError, match=rf"^model\.path: {gone}_3 of .*; set model\.t5 to false, "
    ):
        read("sd3", sd3)
    policy, _ = read("sd3", sd3, t5=False)
    assert policy.describe().endswith("; without T5, whose part of a condition is zeros")
    flux = copy(whole, "flux", tmp_path / "flux")
    shutil.rmtree(flux / f"{gone}_2")
    with pytest.raises(ValueError, match=rf"{gone}_2 of .*; FLUX reads its prompts by T5: set mod"):
        read("flux", flux)


@pytest.mark.parametrize("name", KINDS)
def test_the_one_variant_that_is_there_is_read_and_said(whole, tmp_path, name):
    folder = copy(whole, name, tmp_path)
    for part in ("transformer", "vae", "text_encoder"):
        variant(folder / part, "fp16")
    plain, plain_decoder = read(name, whole[name])
    policy, decoder = read(name, folder)
    said = "; read from the fp16 variant: "
    assert policy.describe().split(";")[2] == f"{said}transformer, text_encoder"[1:]
    assert decoder.describe().endswith(f"{said}vae")
    assert "variant" not in plain.describe() + plain_decoder.describe()
    latents, condition = noise(1, *plain.latent_shape), plain.encode(TEXTS[:1])
    velocities = [p.velocity(latents, torch.tensor([0.5]), condition) for p in (plain, policy)]
    assert torch.equal(*velocities)


def test_a_variant_in_shards_is_read(whole, tmp_path):
    from diffusers import SD3Transformer2DModel
    from transformers import T5EncoderModel

    folder = copy(whole, "sd3", tmp_path)
    for part, kind in (("transformer", SD3Transformer2DModel), ("text_encoder_3", T5EncoderModel)):
        model = kind.from_pretrained(folder / part)
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder / part, variant="fp16", max_shard_size="30KB")
        assert len(list((folder / part).glob("*fp16-0*.safetensors"))) > 1
    policy, _ = read("sd3", folder)
    assert "; read from the fp16 variant: transformer, text_encoder_3" in policy.describe()


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_the_line_that_converts_pickled_weights_does(whole, tmp_path, part):
    folder = copy(whole, "sd3", tmp_path)
    pickled(folder / part)
    with pytest.raises(ValueError, match="convert them: ") as caught:
        read("sd3", folder)
    command = shlex.split(str(caught.value).partition("convert them: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert read("sd3", folder)


@pytest.mark.parametrize("keys", [{}, {"qk_norm": "rms_norm"}])
def test_sd3_medium_and_large(tmp_path, keys):
    """Without dual attention, and without qk_norm: their configs do not have the keys."""
    from diffusers import SD3Transformer2DModel

    folder = Path(build_sd3(tmp_path / "model"))
    old = SD3Transformer2DModel.load_config(folder / "transformer")
    new = {"dual_attention_layers": (), "qk_norm": None} | keys
    torch.manual_seed(0)
    SD3Transformer2DModel.from_config({**old, **new}).save_pretrained(folder / "transformer")
    file = folder / "transformer" / "config.json"
    settings = json.loads(file.read_text())
    for key in {"dual_attention_layers", "qk_norm"} - keys.keys():
        del settings[key]
    file.write_text(json.dumps(settings))
    loaded, _ = read("sd3", folder)
    assert loaded.describe().endswith("; without T5, whose part of a condition is zeros")
    start, condition = noise(2, *loaded.latent_shape), loaded.encode(TEXTS)
    latents = ode(lambda x, sigma: loaded.velocity(x, sigma, condition), start, loaded.sigmas(4))
    expected = sd3_sample(load_sd3(folder), TEXTS, start, 4, 4.5)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    images = loaded.latent_shape[1] * SCALE
    assert sd3_config(folder).size == (images, images)


def test_a_single_file_is_one_line_with_the_line_that_makes_a_folder(tmp_path):
    file = tmp_path / "sd3.5_medium.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(RecipeError, match=r"^model\.path: .*medium\.safetensors is a single file"):
        load(None, ["--model.path", str(file)])
    with pytest.raises(ValueError, match=r"KIND\.from_single_file\(.*\)\.save_pretrained\('FO"):
        read("sd3", file)


@pytest.mark.parametrize("name", KINDS)
def test_the_job_ends_in_one_line_and_exit_code_2(whole, tmp_path, name):
    folder = copy(whole, name, tmp_path)
    config(folder / "transformer", quantization_config={"quant_method": "bitsandbytes"})
    settings = {"family": name, "path": folder, "resolution": 16, "t5": "true"}
    command = [sys.executable, "jobs/train_pec.py", "--runtime.backend=local"]
    command += [f"--run.folder={tmp_path}", *(f"--model.{k}={v}" for k, v in settings.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: model.path: transformer of {folder}: is quantized (bitsandby")


def test_every_family_is_in_the_suite():
    assert [f.name for f in FAMILIES] == FOUND.names()
    assert family("sd3") is sd3
    with pytest.raises(ValueError, match=r"model\.family: unknown 'lora'; known are flux, sd3"):
        family("lora")
