"""What a dry run says, against real models, real runs and published numbers."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from percent_ray import run
from percent_ray.data.prompts import of_recipe
from percent_ray.learn import checkpoint
from percent_ray.models import published
from percent_ray.models.base import family
from percent_ray.objective.methods.gardo import Gardo
from percent_ray.preview import memory, meta, report, sizes, stages
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import TFLOPS, parse
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.types import Prompt
from tests import tiny
from tests.end_to_end import world

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "jobs" / "recipes"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = world.build(tmp_path_factory.mktemp("world"))
    return world.recipe(folder, tmp_path_factory.mktemp("runs"), backend="local")


def known(name, folder):
    """A shipped recipe of a published model, and its sizes."""
    recipe = recipes.load(RECIPES / f"{name}.yaml")
    model, source = published.at_hand(recipe.model, folder)
    assert source == "what was published, from memory"
    placed = recipe.model_copy(update={"model": model})
    return placed, sizes.measure(placed)


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_meta_device_finds_the_peak_of_a_real_pass(name, checkpointing, tmp_path):
    build, settings = getattr(tiny, f"build_{name}"), getattr(tiny, f"{name}_config")
    build(tmp_path, **({"t5": False} if name == "sd3" else {}))
    peaks = []
    for device in (CPU, sizes.META):
        model = settings(tmp_path, gradient_checkpointing=checkpointing)
        policy = family(name).load_policy(model, seed=0, device=device, text=False)
        rows = 3
        latents, sigma, condition = (
            torch.zeros(rows, *policy.latent_shape, device=device),
            torch.full((rows,), 0.5, device=device),
            {
                key: torch.zeros(rows, *shape, device=device)
                for key, shape in policy.condition_shapes().items()
            },
        )

        def learn(policy=policy, inputs=(latents, sigma, condition)):
            policy.velocity(*inputs).square().sum().backward()

        peaks.append(meta.peak(learn))
    assert peaks[1] == pytest.approx(peaks[0], rel=0.02)


def test_a_peak_is_what_lives_at_one_time():
    def one_after_the_other():
        for _ in range(5):
            torch.zeros(1000).sum()

    assert 4000 <= meta.peak(one_after_the_other) < 4100
    assert meta.peak(lambda: [torch.zeros(1000) for _ in range(5)]) == 20000
    given = torch.zeros(1000)
    assert meta.peak(lambda: given.view(10, 100)) == 0, "nothing new"


def test_a_dry_run_is_right_about_a_real_run(recipe):
    """Within 20 %: the group's table, the checkpoint, and what a micro-batch takes."""
    found = sizes.measure(recipe)
    room = memory.estimate(recipe, found)
    group = RolloutWorker(recipe, worker="test").sample(0, Prompt("a red circle"), 0)
    assert group.payload.nbytes == pytest.approx(found.group, rel=0.01)
    folder = run.train(recipe)
    last = checkpoint.latest(folder)
    written = sum(file.stat().st_size for file in last.rglob("*") if file.is_file())
    assert room.checkpoint == pytest.approx(written, rel=0.2)
    policy = family(recipe.model.family).load_policy(recipe.model, seed=0, device=CPU, text=True)
    assert found.trained == sum(p.numel() for p in policy.trainable().values())
    assert found.transformer == sum(p.numel() * 4 for p in policy.module.parameters())
    rows = recipe.learner.micro_batch
    condition = policy.encode(["a red circle"] * rows)
    latents = torch.zeros(rows, *policy.latent_shape)

    def learn():
        policy.velocity(latents, torch.full((rows,), 0.5), condition).square().sum().backward()

    assert found.learn == pytest.approx(meta.peak(learn), rel=0.2)


def test_copies_of_the_policy_are_counted(recipe):
    """Old holds a float32 average and a copy in the trained weights' dtype, of which it writes the
    first; a reference is the original of every weight, and the newest where it is made anew."""
    found = sizes.measure(recipe)
    assert found.trained_bytes == 4 * found.trained
    half = replace(found, trained_bytes=2 * found.trained)

    def kept(sizes=found, **changes):
        changed = recipe.model_copy(
            update={
                part: getattr(recipe, part).model_copy(update=keys)
                for part, keys in changes.items()
            }
        )
        room = memory.estimate(changed, sizes)
        return room.workers["process"], room.checkpoint

    plain, written = kept()
    assert not {"old policy", "reference policy"} & plain.keys()
    forward = {"process": "forward"}
    assert kept(learner=forward)[0]["old policy"] == 4 * found.trained
    assert kept(learner=forward)[1] == written + 4 * found.trained
    assert kept(half, learner=forward)[0]["old policy"] == 6 * found.trained
    assert kept(half, learner=forward)[1] == kept(half)[1] + 4 * found.trained
    kl, anew = {"kl": 0.1}, {"kl": 0.1, "reference_every": 5}
    assert "reference policy" not in kept(objective=kl)[0], "a LoRA's base is the original"
    assert kept(objective=anew)[0]["reference policy"] == found.trained_bytes
    assert kept(objective=anew)[1] == written + found.trained_bytes
    full = {"lora_rank": 0}
    assert kept(objective=kl, model=full)[0]["reference policy"] == found.transformer
    own = memory.estimate(
        recipe.model_copy(
            update={"method": Gardo(), "model": recipe.model.model_copy(update=full)}
        ),
        found,
    )
    assert own.workers["process"]["reference policy"] == found.transformer


def test_a_scorer_without_a_path_has_its_kinds_own_and_no_other_folder(tmp_path, monkeypatch):
    """Rules have no weights, whatever lies where the job is started."""
    (tmp_path / "stray.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.chdir(tmp_path)
    asked = {"pickscore": "", "dino": "", "clip": ""}
    keys = [arg for name, path in asked.items() for arg in (f"--scorers.{name}.path", path)]
    recipe = recipes.load(
        RECIPES / "shapes_pec.yaml",
        [*keys, "--scorers.geneval.weight", "1", "--scorers.geneval.path", ""],
    )
    found = dict(sizes._scorers(recipe))
    assert found == {
        "geneval": 0,
        "pickscore": 4 * 986_109_441,
        "dino": 4 * 86_580_480,
        "clip": None,
    }


def test_flux_is_as_published(tmp_path):
    """REAL_WEIGHTS: 23,802,816,640 bytes of bfloat16 in the index."""
    recipe, found = known("flux_dev_pickscore_pec", tmp_path)
    adapter = found.trained
    assert found.transformer - 4 * adapter == 23_802_816_640
    network = found.policy.module
    assert len([n for n in network.state_dict() if "lora_" not in n]) == 19 * 32 + 38 * 14 + 20
    names = {
        "transformer_blocks.18.attn.norm_added_q.weight": [128],
        "single_transformer_blocks.37.proj_mlp.weight": [12288, 3072],
        "single_transformer_blocks.37.proj_out.weight": [3072, 15360],
        "time_text_embed.guidance_embedder.linear_1.weight": [3072, 256],
        "context_embedder.weight": [3072, 4096],
        "proj_out.weight": [64, 3072],
    }
    state = {n.replace(".base_layer", ""): list(t.shape) for n, t in network.state_dict().items()}
    assert {name: state[name] for name in names} == names
    assert "LoRA rank 64, alpha 128 on 342 layers" in found.policy.describe()
    # 24 GFLOP a token and a text token of dense layers, and the attention.
    assert 2 * 11.9e9 * 1152 * 0.5 < found.velocity_flops < 2 * 11.9e9 * 1152
    lines = report._schedule(recipe, found)
    assert lines[0] == "sigma 1.0000 0.9037 0.7897 0.6525 0.4842 0.2730 0.0000", "PAPER, section 1"
    assert "std 0.900 0.931 0.646 0.506 0.401" in lines[1]


def test_sd35_medium_is_as_published(tmp_path):
    recipe, found = known("sd35_medium_pickscore_pec", tmp_path)
    assert found.transformer - 4 * found.trained == 2 * 2_243_171_520
    assert list(found.text) == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert found.text["text_encoder_3"] == pytest.approx(2 * 4.76e9, rel=0.01)
    assert found.policy.condition_shapes()["prompt_embeds"] == (77 + 128, 4096)
    assert "0.9601 0.9133 0.8577" in report._schedule(recipe, found)[0]
    # 24 x 19 latents of 16 x 64 x 64 in float32 and the finished ones.
    assert found.group == 24 * (20 * 16 * 64 * 64 * 4 + 9 * 4)


@pytest.mark.parametrize("name", ["flux_dev_pickscore_nft_pec", "sd35_medium_pickscore_24gb"])
def test_a_recipes_numbers_are_those_of_its_dry_run(name, tmp_path):
    recipe, found = known(name, tmp_path)
    room = memory.estimate(recipe, found)
    text = (RECIPES / f"{name}.yaml").read_text()
    for role, parts in room.workers.items():
        gib = f"{sum(parts.values()) / 2**30:.0f}"
        assert f"{role} {gib}" in text or f"By --dry-run: {gib} GiB;" in text
    step = stages.guessed(recipe, found, tflops=TFLOPS).step(recipe)
    assert f"; {report._digits(step)} s a step at {TFLOPS:g} TFLOP/s" in text


def test_a_tiny_decoder_is_counted_and_takes_less(tmp_path, capsys):
    name, few = "sd35_medium_pickscore_pec", ["--perceptual.batch_size", "auto"]
    tiny = [*few, "--perceptual.decoder", "tiny", "--perceptual.decode", "clean"]
    found = []
    for number, changes in enumerate(([], few, tiny)):
        recipe = recipes.load(RECIPES / f"{name}.yaml", changes)
        recipe = report._with_tiny(recipe, tmp_path / f"{number}")
        model, _ = published.at_hand(recipe.model, tmp_path / f"{number}")
        placed = recipe.model_copy(update={"model": model})
        found.append((placed, sizes.measure(placed)))
    (_, plain), (_, auto), (recipe, small) = found
    assert (plain.decode, plain.tiny) == (auto.decode, 0)
    assert small.tiny == pytest.approx(2 * 2.45e6, rel=0.01), "TAESD's blocks in bfloat16"
    assert memory.estimate(recipe, small).workers["perception"]["tiny decoder"] == small.tiny
    # The VAE decodes the 24 finished images alone.
    assert small.decode == pytest.approx(plain.decode / 2, rel=0.01)
    assert small.decode_flops == plain.decode_flops == plain.score_flops
    assert small.score_flops < plain.score_flops / 10
    seconds = [stages.guessed(r, s, tflops=300).by_role["perception"] for r, s in found]
    assert seconds[0] == seconds[1]
    one = small.decode_flops + 2 * 9 * small.score_flops
    assert seconds[2] == pytest.approx(recipe.trained_images * one / 300e12)


def test_an_automatic_batch_is_said_to_be_counted_as_its_most(capsys):
    changes = ["--perceptual.batch_size", "auto", "--perceptual.decoder", "tiny"]
    recipe = recipes.load(RECIPES / "shapes_pec.yaml", changes)
    report.show(recipe, measure=False, images_per_hour=None, tflops=300)
    out = capsys.readouterr().out
    assert "perceptual.batch_size auto is counted as 48 images" in out
    assert "tiny decoder 0.4 MiB" in out


def test_workers_for_a_target_are_those_that_make_it():
    seconds = stages.Seconds({"rollout": 370.0, "perception": 48.0, "learner": 247.0}, "")
    assert seconds.needed(100.0) == {"rollout": 4, "perception": 1, "learner": 3}
    recipe = recipes.load(RECIPES / "flux_dev_pickscore_fast.yaml")
    assert seconds.step(recipe) == pytest.approx(370 / 3)
    waiting = recipe.model_copy(
        update={"runtime": recipe.runtime.model_copy(update={"max_staleness": 0})}
    )
    assert seconds.step(waiting) == pytest.approx(370 / 3 + 247 / 4)


def test_the_whole_page(capsys):
    judge = "--scorers.judge.kind http --scorers.judge.path http://judge --scorers.judge.weight 1"
    overrides = ["--runtime.learner.workers", "3", *judge.split()]
    recipe = recipes.load(RECIPES / "shapes_pec.yaml", overrides)
    report.show(recipe, measure=False, images_per_hour=None, tflops=300)
    out = capsys.readouterr().out
    assert "LoRA rank 4, alpha 8 on 47 layers" in out
    assert "6 groups of 24 = 144 images; 2 optimizer steps of 72, on 3 learners" in out
    assert "tokenizer cuts 0 of 158 at 12 tokens" in out
    assert "policy entropy 0.825 nats a dimension" in out
    assert "not guessed for CPUs" in out
    assert re.search(r"a learner worker \d\d\.\d MiB: transformer 13\.5 MiB", out)
    assert ("it cannot: runtime.learner: 3 workers" in out) == ((os_cpus()) < 1.5 + 1)
    assert "scorers.clip.retries" not in out, "a default"
    assert "not counted" not in out, "a server's model takes no memory here"


def os_cpus():
    import os

    return os.cpu_count() or 1


def test_prompts_that_a_tokenizer_cuts_are_counted(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n" + "a red circle and " * 5 + "a blue square\n")
    recipe = recipes.load(RECIPES / "shapes_pec.yaml", ["--data.prompts", str(prompts)])
    model, _ = published.at_hand(recipe.model, tmp_path)
    lines = report._cut(recipe.model_copy(update={"model": model}), of_recipe(recipe)[0])
    said = "cuts 1 of 2 at 12 tokens, the longest has 25"
    assert lines == [f"tokenizer {said}", f"tokenizer_2 {said}"]


def test_a_model_of_which_nothing_is_known_is_one_line(tmp_path):
    recipe = recipes.load(RECIPES / "shapes_pec.yaml", ["--model.path", "nobody/nothing"])
    with pytest.raises(ValueError, match=r"^model\.path: nobody/nothing is neither a folder nor"):
        published.at_hand(recipe.model, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--measure"], "add it or drop them"),
        (["--tflops", "100"], "add it or drop them"),
        (["--dry-run", "--only", "rollout"], "drop --only and --resume"),
        (["--dry-run", "--images-per-hour", "-3"], "is not above 0"),
        (["--dry-rum"], "did you mean --dry-run"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(arguments, said):
    with pytest.raises(ValueError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        parse(arguments, job="job", default=RECIPES / "shapes_pec.yaml")


def test_the_job_prints_it():
    command = [sys.executable, "jobs/train_pec.py", "--dry-run", "--model.path", "nobody/nothing"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: model.path: nobody/nothing is neither")
