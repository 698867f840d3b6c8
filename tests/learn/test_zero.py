import socket

import pytest
import torch

from percent_ray.data import arrow
from percent_ray.learn.engine import TorchEngine
from percent_ray.learn.zero import saved_weights
from percent_ray.roles.learner import Learner
from tests.learn.fake import FakePolicy, fake_recipe
from tests.learn.ranks import (
    forward,
    rank_main,
    renewing,
    replayed,
    signal,
    train,
    with_learner,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return fake_recipe(
        tmp_path_factory.mktemp("recipe"),
        objective={"kl": 0.3, "clip_low": 0.004, "clip_high": 0.006},
        learner={"lr_half_life": 2},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(recipe, folder):
    """What two ranks found out, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(rank_main, (port, recipe, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def plain_torch(recipe, policy=None, **changes):
    """Metrics, weights and EMA of one process."""
    recipe = with_learner(recipe, **changes)
    policy = policy or FakePolicy()
    learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
    metrics = train(learner, recipe)
    return metrics, arrow.unpack(learner.publish()[0]), learner._ema.gather()


def largest_gap(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_same_metrics(found, expected):
    """But for what compares the parts of a step: two ranks share a group here."""
    for one, other in zip(found, expected, strict=True):
        split = ("signal/gradient", "signal/noise")
        one, other = ({k: v for k, v in m.items() if k not in split} for m in (one, other))
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def whole(recipe):
    """One process that takes every chunk in one pass."""
    return plain_torch(recipe, micro_batch=24)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_invariant_6_loss_does_not_depend_on_learners_micro_batches_or_zero_stage(
    recipe, ranks, whole, stage
):
    metrics, weights, average = whole
    zero = ranks[0]["stages"][stage]
    assert_same_metrics(zero["metrics"], metrics)
    assert largest_gap(zero["weights"], weights) < 1e-6
    assert largest_gap(zero["ema"], average) < 1e-6
    assert zero["metrics"][1]["ratio/clip_low"] + zero["metrics"][1]["ratio/clip_high"] > 0
    assert zero["metrics"][0]["grad/norm"] > recipe.learner.max_grad_norm


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_each_rank_has_its_part_of_the_average_and_joining_them_changes_no_bit(ranks, stage):
    parts = [rank["stages"][stage]["parts"] for rank in ranks]
    joined = ranks[0]["stages"][stage]["joined"]
    assert ranks[1]["stages"][stage]["joined"] is None
    for name, whole in joined.items():
        first, second = (part[name] for part in parts)
        assert len(first) == len(second) == whole.numel() / 2
        flat = whole.flatten()
        assert torch.equal(torch.cat([first, second]).view(torch.int32), flat.view(torch.int32))
        assert flat.signbit()[[0, len(first)]].all(), "-0, too"


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_invariant_6_loss_does_not_depend_on_micro_batches(recipe, whole, micro_batch):
    metrics, weights, average = whole
    found, cut, cut_average = plain_torch(recipe, micro_batch=micro_batch)
    assert_same_metrics(found, metrics)
    assert largest_gap(cut, weights) < 1e-7
    assert largest_gap(cut_average, average) < 1e-7


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_forward_process_on_two_ranks_equals_one_process(recipe, ranks, stage):
    """Also with an old policy that ZeRO 3 holds in parts."""
    metrics, weights, average = plain_torch(forward(recipe))
    zero = ranks[0]["forward"][stage]
    assert metrics[1]["velocity/first_moved_max"] > 1e-9, "the old policy is another one"
    assert_same_metrics(zero["metrics"], metrics)
    assert largest_gap(zero["weights"], weights) < 1e-6
    assert largest_gap(zero["ema"], average) < 1e-6


def test_the_forward_process_resumes_under_zero_3(ranks):
    straight, resumed = ranks[0]["forward"][3], ranks[0]["forward_resumed"]
    assert_same_metrics(resumed["metrics"], straight["metrics"][1:])
    assert largest_gap(resumed["weights"], straight["weights"]) < 1e-6


def test_a_renewed_reference_under_zero_3(recipe, ranks):
    metrics, weights, _ = plain_torch(renewing(recipe))
    found = ranks[0]["renewed"]
    assert [m["kl/reference_renewed"] for m in metrics] == [1, 1]
    assert_same_metrics(found["metrics"], metrics)
    assert largest_gap(found["weights"], weights) < 1e-6


def test_replayed_old_log_probs_under_zero_3(recipe, ranks):
    metrics, weights, _ = plain_torch(replayed(recipe))
    assert [m["ratio/first_max_dev"] for m in metrics] == [0, 0]
    assert metrics[1]["ratio/max_dev"] > 1e-4, "the weights have changed since"
    assert_same_metrics(ranks[0]["replayed"]["metrics"], metrics)
    assert largest_gap(ranks[0]["replayed"]["weights"], weights) < 1e-6


def test_signal_and_noise_of_two_ranks_are_those_of_one_process(recipe, ranks):
    """Each rank has two of the four groups."""
    policy, whole = FakePolicy(), with_learner(recipe, updates=1)
    expected = signal(whole, Learner(whole, policy, TorchEngine(whole.learner, policy)))
    assert expected.keys() == {"signal/gradient", "signal/noise"}
    for rank in ranks:
        assert rank["signal"] == pytest.approx(expected, rel=1e-3)


def test_signal_and_noise_are_not_measured_where_ranks_share_a_group(ranks):
    """Three groups on two ranks."""
    for found in ranks[0]["stages"].values():
        assert not {"signal/gradient", "signal/noise"} & found["metrics"][1].keys()
        assert "signal/descent" in found["metrics"][1]


def test_without_a_clip(recipe, ranks):
    metrics, weights, _ = plain_torch(recipe, max_grad_norm=0.0)
    assert_same_metrics(ranks[0]["unclipped"]["metrics"], metrics)
    assert largest_gap(ranks[0]["unclipped"]["weights"], weights) < 1e-6


def test_metrics_are_the_same_on_every_rank_and_weights_only_on_rank_0(ranks):
    for stage, zero in ranks[1]["stages"].items():
        assert zero["metrics"] == ranks[0]["stages"][stage]["metrics"]
        assert (zero["weights"], zero["ema"], zero["checksum"]) == (None, None, "")


def test_trained_weights_are_read_out_of_a_checkpoint_without_deepspeed(ranks, folder):
    saved = saved_weights(folder / "checkpoint", stage=2)
    weights = {name: saved[name] for name in FakePolicy().trainable()}
    assert arrow.checksum(weights) == ranks[0]["resumed"]["saved"]
    with pytest.raises(ValueError, match="ZeRO stage 3, in parts of weights"):
        saved_weights(folder / "checkpoint_3", stage=3)


@pytest.mark.parametrize(("stage", "key"), [(2, "resumed"), (3, "resumed_3")])
def test_save_load_continue_equals_a_straight_run(ranks, stage, key):
    straight, resumed = ranks[0]["stages"][stage], ranks[0][key]
    assert_same_metrics(resumed["metrics"], straight["metrics"][1:])
    assert largest_gap(resumed["weights"], straight["weights"]) < 1e-6
    assert largest_gap(resumed["ema"], straight["ema"]) < 1e-6


def test_a_checkpoint_cannot_run_code(ranks):
    """Every rank has its own file of optimizer states."""
    for rank in ranks:
        assert not rank["bombed"]["ran"]
        assert "optim_states.pt holds more than weights and is not loaded" in rank["bombed"]["said"]


def test_one_process_does_not_resume_a_group(recipe, ranks, folder):
    policy = FakePolicy()
    learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
    message = r"set runtime.backend ray, runtime.learner.workers 2, learner.zero_stage 2$"
    with pytest.raises(ValueError, match=message):
        learner.load(folder / "checkpoint")


def test_float32_adapters_on_bfloat16_layers(recipe, ranks):
    """Replay in micro-batches rounds otherwise in bfloat16 than all images at once."""
    metrics, weights, _ = plain_torch(recipe, FakePolicy(dtype=torch.bfloat16))
    found = ranks[0]["mixed"]
    assert {tensor.dtype for tensor in found["weights"].values()} == {torch.float32}
    assert found["metrics"][0]["grad/norm"] == pytest.approx(metrics[0]["grad/norm"], rel=1e-3)
    assert largest_gap(found["weights"], weights) < 5e-5


def test_every_weight_in_bfloat16(recipe, ranks):
    """The gradients are summed in float32: the first norm is that of float32 weights."""
    metrics, *_ = plain_torch(recipe, FakePolicy(full=True), lr=1e-4, max_grad_norm=0.0)
    expected = metrics[0]["grad/norm"]
    for found in ranks[0]["bf16"].values():
        assert found["dtypes"] == {"torch.bfloat16"}
        assert found["metrics"][0]["grad/norm"] == pytest.approx(expected, rel=0.01)
        later = ranks[0]["bf16"][1]["metrics"][1]["grad/norm"]
        assert found["metrics"][1]["grad/norm"] == pytest.approx(later, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_is_not_finite_ends_the_update_on_every_rank(ranks, stage):
    for rank in ranks:
        assert ": the advantage in the weights of group 0 has NaN or infinite" in rank["nan"][stage]
