"""Runs of both families, exported and loaded again in processes of their own."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jobs import export as job
from percent_ray import run as runs
from percent_ray.data.prompts import read_prompts
from percent_ray.evaluation.generate import PolicySource
from percent_ray.flow import noise
from percent_ray.learn import checkpoint
from percent_ray.learn.engine import TorchEngine
from percent_ray.models import base, flux
from percent_ray.recipe.tree import Recipe
from tests import tiny
from tests.end_to_end import world as worlds

ROOT = Path(__file__).parents[2]
SEED, IMAGES = 5, 2
LORA = "pytorch_lora_weights.safetensors"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Run:
    recipe: Recipe
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "step-00000003"

    def policy(self, *, trained: str | None = "policy"):
        """Of the checkpoint's policy folder, its engine's state, or (None) before training."""
        model = self.recipe.model
        policy = base.family(model.family).load_policy(
            model, seed=1, device=torch.device("cpu"), text=True
        )
        if trained == "policy":
            policy.load(str(self.checkpoint / "policy"))
        elif trained == "engine":
            TorchEngine(self.recipe.learner, policy).load(self.checkpoint)
        return policy

    def pictures(self, **policy):
        """The run's own, of its first prompt."""
        model = self.recipe.model
        decoder = base.family(model.family).load_decoder(model, device=torch.device("cpu"))
        steps = self.recipe.sampling.steps
        source = PolicySource(self.policy(**policy), decoder, steps=steps, batch_size=IMAGES)
        [prompt] = read_prompts(Path(self.recipe.data.prompts))[:1]
        made = source.draw(prompt, 0, images=IMAGES, seed=SEED)
        return made.images.numpy()


def train(world: Path, folder: Path, family: str, rank: int) -> Run:
    recipe = worlds.recipe(world, folder, backend="local").model_dump()
    recipe["model"] |= {"lora_rank": rank, "lora_alpha": 6}
    recipe["learner"] |= {"lr": 0.1, "ema_every": 4}
    if family == "flux":
        recipe["model"] |= {"family": "flux", "path": tiny.build_flux(folder / "flux"), "t5": True}
        recipe["model"]["guidance"] = 3.5
        recipe["model"]["lora_targets"] += ("ff.net.2", "proj_mlp", "proj_out", "norm_out.linear")
    recipe = Recipe.model_validate(recipe)
    return Run(recipe, runs.train(recipe))


@pytest.fixture(scope="module", params=["sd3", "flux"])
def adapted(request, world, tmp_path_factory):
    return train(world, tmp_path_factory.mktemp(request.param), request.param, rank=4)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    return train(world, tmp_path_factory.mktemp("whole"), "sd3", rank=0)


def python(*arguments: str, code: int = 0) -> str:
    """What a fresh process has printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def loading(output: str) -> list[str]:
    """The last lines of the job's output: they load what it wrote."""
    lines = output.rpartition("\n\n")[2].splitlines()
    assert 2 <= len(lines) <= 5
    return lines


def drawn(run: Run, folder: Path, exports: list[list[str]]) -> list[np.ndarray]:
    """What the printed lines of each export draw in a fresh process, for the run's first prompt and
    noise; they are run as they are printed, too."""
    policy = run.policy()
    start = noise.group_noise(SEED, 0, range(IMAGES), noise.INITIAL, policy.latent_shape)
    start = flux.pack(start) if run.recipe.model.family == "flux" else start
    torch.save(start, folder / "start.pt")
    prompt = read_prompts(Path(run.recipe.data.prompts))[0].text
    given = f'[{prompt!r}] * {IMAGES}, latents=start, output_type="np"'
    script = ["import os, numpy", f"os.chdir({str(folder)!r})"]
    for number, lines in enumerate(exports):
        *before, call, save = lines
        assert '"a photo of a red circle"' in call
        same = call.replace('"a photo of a red circle"', given)
        script += [*before, call, save, f"os.rename('picture.png', 'picture-{number}.png')"]
        script += ["start = torch.load('start.pt')", same, f"numpy.save('{number}', images)"]
    python("-c", "\n".join(script))
    pictures = [np.load(folder / f"{number}.npy") for number in range(len(exports))]
    return [(p.transpose(0, 3, 1, 2) * 255).round().astype(np.uint8) for p in pictures]


def gap(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.slow
def test_exported_pictures_are_the_run_s_own(adapted, tmp_path, monkeypatch, capsys):
    """Of a LoRA and a pipeline, of the average and (the last two) of the trained weights."""
    job = str(ROOT / "jobs" / "export.py")
    exports = [loading(python(job, str(adapted.folder), "--to", str(tmp_path / "lora")))]
    for flags in (["--merged"], ["--raw"], ["--raw", "--merged"]):
        main(monkeypatch, adapted.checkpoint, "--to", tmp_path / "-".join(flags), *flags)
        exports.append(loading(capsys.readouterr().out))
    found = drawn(adapted, tmp_path, exports)
    average, trained = adapted.pictures(), adapted.pictures(trained="engine")
    before = adapted.pictures(trained=None)
    assert min(gap(average, before), gap(trained, before), gap(average, trained)) > 5
    assert max(gap(pictures, average) for pictures in found[:2]) <= 1
    assert max(gap(pictures, trained) for pictures in found[2:]) <= 1


@pytest.mark.slow
def test_a_run_that_trained_every_weight_is_a_pipeline(whole, tmp_path, monkeypatch, capsys):
    exports = []
    for name, flags in (("average", []), ("trained", ["--raw", "--merged"])):
        main(monkeypatch, whole.folder, "--to", tmp_path / name, *flags)
        exports.append(loading(capsys.readouterr().out))
    found = drawn(whole, tmp_path, exports)
    average, trained = whole.pictures(), whole.pictures(trained="engine")
    before = whole.pictures(trained=None)
    assert min(gap(average, before), gap(trained, before), gap(average, trained)) > 5
    assert gap(found[0], average) <= 1
    assert gap(found[1], trained) <= 1


def main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    job.main()


def test_a_step_is_chosen(adapted, tmp_path, monkeypatch, capsys):
    main(monkeypatch, adapted.folder, "--to", tmp_path / "made", "--step", 2)
    assert f"{adapted.folder.name}, step 2: LoRA of rank 4, the EMA weights" in (
        capsys.readouterr().out
    )
    saved = load_file(adapted.checkpoint.with_name("step-00000002") / "policy" / LORA)
    made = load_file(tmp_path / "made" / LORA)
    assert made.keys() == saved.keys()
    assert all(torch.equal(made[name], saved[name]) for name in saved)
    main(monkeypatch, adapted.folder, "--to", tmp_path / "newest")
    assert "step 3: LoRA" in capsys.readouterr().out


def test_the_pipeline_stands_alone(adapted, tmp_path, monkeypatch):
    """As in a hub's cache, the base's files are links, and there are weights in another format."""
    linked = tmp_path / "base"
    source = Path(adapted.recipe.model.path)
    for path in source.rglob("*"):
        if path.is_file():
            (linked / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (linked / path.relative_to(source)).symlink_to(path)
    (linked / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"other")
    (linked / "LICENSE.md").write_text("terms")
    run = with_model(adapted, tmp_path / "run", path=str(linked))
    main(monkeypatch, run, "--to", tmp_path / "made", "--merged")
    made = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert not any(path.is_symlink() for path in made)
    names = {path.relative_to(tmp_path / "made") for path in made}
    expected = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert names == expected | {Path("LICENSE.md")}
    for name in expected - {Path(TRANSFORMER), Path("model_index.json")}:
        assert (tmp_path / "made" / name).read_bytes() == (source / name).read_bytes()


def with_model(run: Run, folder: Path, **changes: object) -> Path:
    """A copy of the run's checkpoint, of a recipe with another `model` section."""
    made = folder / "checkpoints" / run.checkpoint.name
    made.mkdir(parents=True)
    for path in run.checkpoint.iterdir():
        if path.name != checkpoint.MANIFEST:
            (made / path.name).symlink_to(path)
    driver = json.loads((made / "driver.json").read_text())
    driver["recipe"]["model"] |= changes
    (made / "driver.json").unlink()
    (made / "driver.json").write_text(json.dumps(driver))
    checkpoint.seal(made)
    return folder


def sharded(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A base whose transformer is in two files, the first of them in `dtype`."""
    for path in source.rglob("*"):
        if path.is_file() and path != source / TRANSFORMER:
            (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(source)).symlink_to(path)
    weights = load_file(source / TRANSFORMER)
    names = sorted(weights)
    half = len(names) // 2
    index: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        cast = dtype if number == 1 else torch.float32
        tensors = {name: weights[name].to(cast) for name in part}
        save_file(tensors, folder / "transformer" / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / f"{TRANSFORMER}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return folder


def test_files_and_dtypes_of_the_base_are_kept_and_rounding_is_said(
    adapted, tmp_path, monkeypatch, capsys
):
    source = Path(adapted.recipe.model.path)
    folder = sharded(source, tmp_path / "base", torch.bfloat16)
    run = with_model(adapted, tmp_path / "run", path=str(folder))
    main(monkeypatch, run, "--to", tmp_path / "made", "--merged")
    output = capsys.readouterr().out
    assert "weights changed, in bfloat16, float32; rounding to it takes or adds" in output
    main(monkeypatch, adapted.folder, "--to", tmp_path / "plain", "--merged")
    assert "rounding" not in capsys.readouterr().out
    expected = load_file(tmp_path / "plain" / TRANSFORMER)
    found: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        before, after = load_file(path), load_file(tmp_path / "made" / "transformer" / path.name)
        assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
        found |= after
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        tolerance = 1e-2 if weight.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(
            weight.float(), expected[name], rtol=tolerance, atol=tolerance / 10
        )


def test_what_the_run_did_without_is_left_out_and_said(whole, tmp_path, monkeypatch, capsys):
    path = tiny.build_sd3(tmp_path / "base", t5=True)
    for t5, absent in ((False, True), (True, False)):
        run = with_model(whole, tmp_path / f"run-{t5}", path=path, t5=t5)
        main(monkeypatch, run, "--to", tmp_path / f"made-{t5}")
        made, output = tmp_path / f"made-{t5}", capsys.readouterr().out
        assert ("left out, as in training (model.t5 false): text_encoder_3" in output) == absent
        assert ("text_encoder_3=None" in output) == absent
        assert (made / "text_encoder_3").exists() != absent
        index = json.loads((made / "model_index.json").read_text())
        assert (index["tokenizer_3"] == [None, None]) == absent
        assert re.search(r"transformer: \d+ of \d+ weights changed, in float32", output)


def test_an_adapter_that_changes_nothing_is_said(adapted, tmp_path, monkeypatch, capsys):
    run = with_model(adapted, tmp_path / "run")
    policy = run / "checkpoints" / adapted.checkpoint.name / "policy"
    policy.unlink()
    policy.mkdir()
    with safe_open(adapted.checkpoint / "policy" / LORA, framework="pt") as file:
        header = file.metadata()
    weights = load_file(adapted.checkpoint / "policy" / LORA)
    zero = {name: w * 0 if ".lora_B." in name else w for name, w in weights.items()}
    save_file(zero, policy / LORA, metadata=header)
    main(monkeypatch, run, "--to", tmp_path / "made", "--merged")
    output = capsys.readouterr().out
    assert "it changes nothing yet" in output
    assert "transformer: 0 of" in output
    main(monkeypatch, adapted.folder, "--to", tmp_path / "other", "--merged")
    output = capsys.readouterr().out
    assert "nothing" not in output
    # The last block's text queries are not looked at: their B stay 0.
    changed = sum(bool(weight.any()) for name, weight in weights.items() if ".lora_B." in name)
    assert changed > 10
    assert f"transformer: {changed} of " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: RUN, --to"),
        (["{run}", "--to", "{new}", "--raw", "--ema"], "not allowed with"),
        (["{run}", "--to", "{new}", "--formt", "comfyui"], "--formt"),
        (["{run}", "--to", "{full}"], "is there and not empty; give a new folder"),
        (["nowhere", "--to", "{new}"], "no checkpoint in nowhere nor in runs/nowhere"),
        (["{run}", "--to", "{new}", "--step", "1"], "no checkpoint of step 1; choose .* 2, 3"),
        (["{run}/checkpoints/step-00000003", "--to", "{new}", "--step", "3"], "leave the step out"),
        (["{run}", "--to", "{new}", "--merged", "--format", "comfyui"], "drop --merged"),
        (["{whole}", "--to", "{new}", "--format", "comfyui"], "trained every weight"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    adapted, whole, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    places = {"run": adapted.folder, "whole": whole.folder}
    places |= {"new": tmp_path / "new", "full": tmp_path / "full"}
    refused(monkeypatch, capsys, *(a.format(**places) for a in arguments), message=message)
    assert not (tmp_path / "new").exists()


def refused(monkeypatch, capsys, *arguments: object, message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, *arguments)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_another_base_is_refused_and_leaves_nothing(adapted, tmp_path, monkeypatch, capsys):
    to = ["--to", tmp_path / "made", "--merged"]
    other = tmp_path / "base"
    sharded(Path(adapted.recipe.model.path), other, torch.float32)
    run = with_model(adapted, tmp_path / "run", path=str(other))
    [file, _] = sorted((other / "transformer").glob("*.safetensors"))
    weights = load_file(file)

    def attempt(message: str) -> None:
        refused(monkeypatch, capsys, run, *to, message=message)
        assert not list(tmp_path.glob("*made*"))

    name = next(n for n in weights if n.endswith("attn.to_q.weight"))
    save_file(weights | {name: torch.zeros(3, 3)}, file)
    attempt(rf"{name} of its transformer is \[3, 3\], the trained one")
    del weights[name]
    save_file(weights, file)
    attempt(r"has no place for 2 of \d+ trained weights \(.*to_q.lora_A")
    file.write_bytes(file.read_bytes()[:1000])
    attempt("has a file that is not whole")
    file.unlink()
    attempt("transformer of .* lacks diffusion_pytorch_model-00001")
    (other / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    attempt("model.path: vae of .* has no safetensors")
    (other / "vae" / "config.json").unlink()
    (other / "vae").rmdir()
    attempt("model.path: vae of .* is not there")
    run = with_model(adapted, tmp_path / "gone", path=str(tmp_path / "nothing"))
    attempt("no folder .*nothing")
    main(monkeypatch, run, "--to", tmp_path / "lora")
    assert f"from_pretrained('{tmp_path / 'nothing'}'" in capsys.readouterr().out
    run = with_model(adapted, tmp_path / "held", path="owner/name@v1")
    main(monkeypatch, run, "--to", tmp_path / "other-lora")
    assert "from_pretrained('owner/name', revision='v1', " in capsys.readouterr().out


def test_a_run_without_an_average_exports_its_weights(adapted, tmp_path, monkeypatch, capsys):
    run = with_model(adapted, tmp_path / "run")
    made = run / "checkpoints" / adapted.checkpoint.name
    (made / "ema.safetensors").unlink()
    checkpoint.seal(made)
    refused(monkeypatch, capsys, run, "--to", tmp_path / "made", "--ema", message="has no EMA")
    main(monkeypatch, run, "--to", tmp_path / "made", "--raw")
    assert "the trained weights" in capsys.readouterr().out
    assert load_file(tmp_path / "made" / LORA).keys() == load_file(made / "policy" / LORA).keys()


def test_zero_stages_give_their_trained_weights_or_say_why_not(
    adapted, tmp_path, monkeypatch, capsys
):
    """What DeepSpeed writes is read in tests/learn/test_zero.py."""
    run = with_model(adapted, tmp_path / "run")
    stamp = run / "checkpoints" / adapted.checkpoint.name / "engine.json"
    stamp.unlink()
    stamp.write_text(json.dumps({"zero_stage": 3, "workers": 2}))
    checkpoint.seal(stamp.parent)
    refused(monkeypatch, capsys, run, "--to", tmp_path / "made", "--raw", message="leave --raw out")
    main(monkeypatch, run, "--to", tmp_path / "made")


def test_help_teaches(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, "--help")
    assert ended.value.code == 0
    output = capsys.readouterr().out
    for words in ("examples", "--merged", "--format comfyui", "load_lora_weights", "--raw"):
        assert words in output
