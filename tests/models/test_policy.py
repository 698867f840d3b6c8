"""What every model family must do. A new family is a line in `families.py`."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from percent_ray.learn.engine import TorchEngine
from percent_ray.models import trained
from percent_ray.models.base import family
from percent_ray.objective.grpo import Weights
from percent_ray.recipe.tree import Data, Objective, Recipe, Runtime, Sampling, Scorer
from percent_ray.recipe.tree import Learner as LearnerSettings
from percent_ray.roles.learner import Learner
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.types import Prompt, ShapedBatch, ShapedRow
from tests import tiny
from tests.models.cases import CPU, TEXTS, case, noise, perturb
from tests.models.families import FAMILIES

SHIPPED = [family for family in FAMILIES if family.world]
shipped = pytest.mark.parametrize("kind", SHIPPED, indirect=True, ids=lambda f: f.name)
"""Random weights lose too little to other kernels."""


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda f: f.name)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def where(kind, tmp_path_factory):
    """A tiny pipeline of the family."""
    return Path(kind.build(tmp_path_factory.mktemp(kind.name)))


@pytest.fixture(scope="module")
def pipeline(kind, where):
    """What to compare with."""
    return kind.pipeline(where)


@pytest.mark.parametrize("dynamic", [False, True])
def test_sigmas_are_the_pipelines(kind, where, tmp_path, dynamic):
    shutil.copytree(where, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": dynamic}))
    whole = kind.pipeline(tmp_path / "model")
    policy = kind.policy(tmp_path / "model", text=False)
    kind.sample(whole, TEXTS, noise(2, *policy.latent_shape), 5, 1.0)
    sigmas = policy.sigmas(5)
    torch.testing.assert_close(sigmas, whole.scheduler.sigmas.cpu(), rtol=0, atol=0)
    policy.sigmas(3)
    assert len(sigmas) == 6, "a later schedule leaves it alone"


@pytest.mark.parametrize("resolution", [tiny.RESOLUTION, (12, 16)])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_sampling_without_noise_is_the_pipelines(kind, where, pipeline, guidance, resolution):
    from percent_ray.flow.sampler import ode

    policy = kind.policy(where, guidance=guidance, resolution=resolution)
    start, condition = noise(2, *policy.latent_shape, seed=3), policy.encode(TEXTS)
    latents = ode(lambda x, sigma: policy.velocity(x, sigma, condition), start, policy.sigmas(6))
    expected = kind.sample(pipeline, TEXTS, start, 6, guidance)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"max_sequence_length": 5}])
def test_the_shapes_of_a_condition_are_known_without_text_encoders(kind, where, options):
    shapes = kind.policy(where, text=False, **options).condition_shapes()
    condition = kind.policy(where, **options).encode(TEXTS[:1])
    assert shapes == {name: tuple(tensor.shape[1:]) for name, tensor in condition.items()}


def test_on_the_meta_device_a_model_has_every_shape_and_no_weight(kind, where):
    meta = torch.device("meta")
    settings = kind.settings(where, lora_rank=4)
    skeleton = family(kind.name).load_policy(settings, seed=0, device=meta, text=False)
    policy = kind.policy(where, lora_rank=4)
    assert policy.describe().startswith(skeleton.describe())
    for made, wanted in zip(
        skeleton.module.state_dict().items(), policy.module.state_dict().items(), strict=True
    ):
        assert made[0] == wanted[0]
        assert (made[1].shape, made[1].dtype) == (wanted[1].shape, wanted[1].dtype)
    assert {p.device.type for p in skeleton.module.parameters()} == {"meta"}
    latents, sigma, condition = case(policy)
    velocity = skeleton.velocity(latents, sigma, condition)
    assert (velocity.shape, velocity.device.type) == (latents.shape, "meta")


def ratios(
    kind,
    where,
    *,
    dtype,
    guidance,
    draw,
    micro_batch,
    images=8,
    old="drawn",
    updates=1,
    compile=False,
):
    """The ratio's metrics of images drawn and replayed by the shipped model with unchanged
    weights: several updates at no learning rate."""
    recipe = Recipe(
        model=kind.settings(
            where, **kind.world, guidance=guidance, dtype=dtype, lora_rank=4, compile=compile
        ),
        scorers={"pickscore": Scorer(path="shapes/pickscore", weight=1.0)},
        sampling=Sampling(steps=6, group_size=images, batch_size=draw),
        objective=Objective(old_log_prob=old),
        learner=LearnerSettings(micro_batch=micro_batch, updates=updates, ema_decay=0, lr=1e-12),
        data=Data(groups_per_step=1),
        runtime=Runtime(backend="local"),
    )
    policy = family(kind.name).load_policy(recipe.model, seed=1, device=CPU, text=True)
    group = RolloutWorker(recipe, worker="test", policy=policy).sample(0, Prompt(TEXTS[0]), 0)
    advantage = noise(images, 1).expand(images, len(group.steps)).contiguous()
    row = ShapedRow(0, 0, group.payload, group.condition, Weights(advantage))
    learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
    return learner.update(ShapedBatch(0, (row,))).metrics


@pytest.mark.parametrize("batch", [8, 4])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_ratio_is_exactly_1(kind, where, dtype, guidance, batch):
    options = {"dtype": dtype, "guidance": guidance, "draw": batch, "micro_batch": batch}
    metrics = ratios(kind, where, **options)
    assert metrics["ratio/first_max_dev"] == 0
    assert metrics["ratio/floor"] == metrics["ratio/floor_outside"] == 0


@pytest.mark.parametrize(("draw", "micro_batch"), [(4, 8), (8, 4)])
def test_the_first_ratio_of_other_batches_is_1_but_for_rounding(kind, where, draw, micro_batch):
    """Which batches a machine computes alike is its kernels' affair: some are exact here, too. In
    bfloat16 the floor decides, and `old_log_prob: replayed` makes it 0."""
    options = {"dtype": "float32", "guidance": 4.5, "draw": draw, "micro_batch": micro_batch}
    assert ratios(kind, where, **options)["ratio/first_max_dev"] < 5e-6


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replayed_ratio_is_exactly_1_whatever_the_batches(kind, where, dtype, guidance):
    """Replays of 1 image and of 3 take other kernels than the draw of 12; in two optimizer
    steps."""
    for micro_batch in (1, 3):
        options = {"dtype": dtype, "guidance": guidance, "micro_batch": micro_batch}
        metrics = ratios(kind, where, **options, images=12, draw=12, updates=2, old="replayed")
        assert metrics["learner/updates"] == 2
        assert metrics["ratio/max_dev"] == 0


@shipped
def test_a_replay_that_rounds_otherwise_than_the_draw_is_refused(kind, where):
    """One image at a time."""
    message = (
        r"ratio is up to .*e-0[23] from 1 \([2-9]\d% of .* 0\.0001; set objective\.old_log_prob"
    )
    with pytest.raises(ValueError, match=message):
        ratios(kind, where, dtype="bfloat16", guidance=4.5, draw=8, micro_batch=1)


@shipped
def test_a_draw_over_an_expanded_condition_would_be_seen(kind, where, monkeypatch):
    """The mutant: one row of the condition, stride 0, in the draw; as many as images in the
    replay."""
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda tensor: tensor)
    with pytest.raises(ValueError, match=r"ratio is up to \d\.\de-0[12] from 1 \([5-9]\d% of"):
        ratios(kind, where, dtype="bfloat16", guidance=4.5, draw=8, micro_batch=8)


def test_a_saved_adapter_is_read_by_diffusers_with_its_scale(kind, where, tmp_path):
    policy = kind.policy(where, guidance=1, lora_rank=4, lora_alpha=12)
    perturb(policy.trainable())
    latents, sigma, condition = case(policy)
    policy.save(str(tmp_path), policy.trainable())
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    fresh = kind.pipeline(where)
    with torch.no_grad():
        before = kind.predict(fresh.transformer, latents, sigma, condition)
        fresh.load_lora_weights(tmp_path)
        after = kind.predict(fresh.transformer, latents, sigma, condition)
        velocity = policy.velocity(latents, sigma, condition)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(velocity, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_full_fine_tuning_trains_everything_and_diffusers_reads_it(
    kind, where, tmp_path, monkeypatch, shard
):
    if shard:
        monkeypatch.setattr(trained, "SHARD", shard)
    policy = kind.policy(where, lora_rank=0, guidance=1)
    assert len(policy.trainable()) == len(list(policy.module.parameters()))
    weights = {n: p.detach() + 0.1 for n, p in policy.trainable().items()}
    policy.save(str(tmp_path), weights)
    files = [path.name for path in tmp_path.iterdir() if path.suffix != ".json"]
    assert (len(files) > 2) == (trained.INDEX in os.listdir(tmp_path)) == bool(shard)
    assert shard or files == ["diffusion_pytorch_model.safetensors"]
    fresh = kind.pipeline(where)
    read = getattr(diffusers, policy.transformer).from_pretrained(tmp_path, use_safetensors=True)
    fresh.transformer = read
    for name, parameter in read.named_parameters():
        assert torch.equal(parameter, weights[name])
    policy.load(str(tmp_path))
    with torch.no_grad():
        velocity = policy.velocity(*case(policy))
        expected = kind.predict(fresh.transformer, *case(policy))
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 4])
def test_load_takes_what_save_wrote_and_refuses_another_model(kind, where, tmp_path, rank):
    policy, other = kind.policy(where, lora_rank=rank), kind.policy(where, lora_rank=rank, seed=1)
    weights = {n: p.detach() + 0.1 for n, p in policy.trainable().items()}
    policy.save(str(tmp_path), weights)
    other.load(str(tmp_path))
    for name, parameter in other.trainable().items():
        assert torch.equal(parameter, weights[name])
    if rank:
        with pytest.raises(ValueError, match=r"set model\.lora_rank and lora_targets"):
            kind.policy(where, lora_rank=rank * 2).load(str(tmp_path))


@pytest.mark.parametrize("rank", [4, 0])
def test_reference_is_the_model_before_training(kind, where, rank):
    policy = kind.policy(where, lora_rank=rank)
    latents, sigma, condition = case(policy)
    with torch.no_grad():
        before = policy.velocity(latents, sigma, condition)
        perturb(policy.trainable())
        names = list(policy.trainable())
        after = policy.velocity(latents, sigma, condition)
        with policy.reference():
            reference = policy.velocity(latents, sigma, condition)
        again = policy.velocity(latents, sigma, condition)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(reference, before, rtol=0, atol=0)
    torch.testing.assert_close(again, after, rtol=0, atol=0)
    assert list(policy.trainable()) == names


def test_gradient_checkpointing_changes_no_gradient(kind, where):
    gradients = []
    for checkpointing in (False, True):
        policy = kind.policy(where, gradient_checkpointing=checkpointing)
        assert policy.module.is_gradient_checkpointing == checkpointing
        perturb(policy.trainable())
        policy.velocity(*case(policy)).square().sum().backward()
        gradients.append([p.grad for p in policy.trainable().values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def without_kernels(monkeypatch):
    """Blocks are traced, with their gradients, and run by torch's own kernels: in seconds."""
    plain = torch.nn.Module.compile
    traced = partial(plain, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **how: traced(block, **how))


def compiled_and_plain(kind, where, **changes):
    for compiled in (True, False):
        policy = kind.policy(where, compile=compiled, **changes)
        perturb(policy.trainable())
        yield policy


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_change_no_name_and_no_number(
    kind, where, tmp_path, without_kernels, checkpointing
):
    policies = list(compiled_and_plain(kind, where, gradient_checkpointing=checkpointing))
    for policy in policies:
        policy.velocity(*case(policy)).square().sum().backward()
    compiled, plain = policies
    assert all(block._compiled_call_impl for block in trained.blocks(compiled.module))
    assert "2 repeated blocks are compiled at the first calls" in compiled.describe()
    assert list(compiled.module.state_dict()) == list(plain.module.state_dict())
    assert compiled.trainable().keys() == plain.trainable().keys()
    for one, other in zip(compiled.trainable().values(), plain.trainable().values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    weights = {name: torch.zeros_like(p) for name, p in compiled.trainable().items()}
    plain.save(str(tmp_path), weights)
    with torch.no_grad():
        for policy in policies:
            policy.velocity(*case(policy))
            policy.load(str(tmp_path))
        velocity, expected = (policy.velocity(*case(policy)) for policy in policies)
        with compiled.reference():
            reference = compiled.velocity(*case(compiled))
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.study
@pytest.mark.timeout(1800)
@shipped
def test_a_compiled_bfloat16_model_learns_from_its_own_replay(kind, where):
    """Torch's compiler itself: the draw, which has no gradients, rounds otherwise."""
    options = {"dtype": "bfloat16", "guidance": 4.5, "draw": 2, "micro_batch": 2, "images": 4}
    compiled = {"compile": True, "updates": 2}
    with pytest.raises(ValueError, match=r"up to .* set objective\.old_log_prob replayed"):
        ratios(kind, where, **options, **compiled)
    assert ratios(kind, where, **options, **compiled, old="replayed")["ratio/max_dev"] == 0


def test_a_model_is_not_compiled_without_a_c_compiler(kind, where, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ValueError, match=r"compile true needs a C .* gcc, cc, clang is found; ins"):
        kind.policy(where, compile=True)
    monkeypatch.setenv("CC", "none-such")
    with pytest.raises(ValueError, match=r"none of none-such is found; install one or set it to f"):
        kind.policy(where, compile=True)


def test_a_bfloat16_model_keeps_a_float32_adapter(kind, where):
    policy = kind.policy(where, dtype="bfloat16")
    latents, sigma, condition = case(policy)
    velocity = policy.velocity(latents, sigma, condition)
    velocity.sum().backward()
    assert velocity.dtype == torch.float32
    assert condition["prompt_embeds"].dtype == torch.bfloat16
    trained = policy.trainable()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = [p for n, p in policy.module.named_parameters() if n not in trained]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    exact = kind.policy(where).velocity(latents, sigma, kind.policy(where).encode(TEXTS))
    assert (velocity - exact).abs().max() < 0.1 * exact.abs().max()


def test_adapted_layers_are_counted_and_listed(kind, where):
    policy = kind.policy(where, text=False, lora_rank=4, lora_alpha=8)
    trained = policy.trainable()
    layers = {name.partition(".lora_")[0] for name in trained}
    targets = policy._model.lora_targets
    line = policy.describe()
    listed = ", ".join(f"{t} x{sum(x.endswith(f'.{t}') for x in layers)}" for t in targets)
    count = sum(p.numel() for p in trained.values())
    whole = sum(p.numel() for p in policy.module.parameters())
    assert f"LoRA rank 4, alpha 8 on {len(layers)} layers ({listed}), {count:,} weights" in line
    assert f"{whole - count:,} weights in float32, none missing" in line
    full = kind.policy(where, text=False, lora_rank=0).describe()
    assert f"{whole - count:,} weights, none missing, all trained in float32" in full


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_part_without_all_of_its_weights_is_refused(kind, where, tmp_path, part):
    shutil.copytree(where, tmp_path / "model")
    [file] = (tmp_path / "model" / part).glob("*.safetensors")
    weights = load_file(file)
    name = kind.layer if part == "transformer" else max(weights, key=lambda n: weights[n].numel())
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    message = rf"^model\.path: {part} of .* does not fit .*: 1 missing \({name}\): {file.name} is "
    decoder = partial(family(kind.name).load_decoder, device=CPU)
    load = (lambda folder: decoder(kind.settings(folder))) if part == "vae" else kind.policy
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae", "scheduler"])
@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_a_damaged_pipeline_is_one_line(kind, where, tmp_path, part, damage):
    shutil.copytree(where, tmp_path / "model")
    if damage == "gone":
        shutil.rmtree(tmp_path / "model" / part)
    elif part == "scheduler":
        (tmp_path / "model" / part / "scheduler_config.json").write_text("{")
    else:
        [file] = (tmp_path / "model" / part).glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:1000])
    decoder = partial(family(kind.name).load_decoder, device=CPU)
    load = (lambda folder: decoder(kind.settings(folder))) if part == "vae" else kind.policy
    with pytest.raises(ValueError, match=rf"^model\.path: {part}.* of ") as caught:
        load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_part_without_its_tokenizer_is_refused(kind, where, tmp_path):
    shutil.copytree(where, tmp_path / "model")
    for file in (tmp_path / "model" / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(
        ValueError, match=r"^model\.path: tokenizer of .* has none of tokenizer\.json, vocab\."
    ):
        kind.policy(tmp_path / "model")
