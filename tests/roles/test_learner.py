import pytest
import torch
from safetensors.torch import load_file

from percent_ray.data import arrow
from percent_ray.learn.batch import Images
from percent_ray.learn.engine import TorchEngine, check_stamp, write_stamp
from percent_ray.roles.learner import Learner
from tests.learn.fake import FakePolicy, draw_batch, fake_recipe, make_learner, resumed
from tests.learn.ranks import forward, own, replayed


def train(learner, policy, recipe, steps):
    """On-policy batches; the metrics and checksums of each step."""
    found = []
    for step in steps:
        batch = draw_batch(policy, recipe, step=step, version=step)
        update = learner.update(batch)
        found.append((update.version, update.metrics, learner.publish()[1]))
    return found


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_invariant_8_save_load_continue_equals_the_straight_run_exactly(
    tmp_path, ema_decay, renewed
):
    recipe = fake_recipe(
        tmp_path,
        learner={"ema_decay": ema_decay, "ema_every": 3},
        objective={"kl": 0.3 * renewed, "reference_every": int(renewed)},
    )
    straight, policy = make_learner(recipe)
    expected = train(straight, policy, recipe, range(4))
    first, policy = make_learner(recipe)
    train(first, policy, recipe, range(2))
    second, policy = resumed(first, recipe, tmp_path / "checkpoint")
    assert second.version == 2
    assert second.publish()[1] == first.publish()[1]
    assert train(second, policy, recipe, range(2, 4)) == expected[2:]
    if ema_decay:
        assert arrow.checksum(second._ema.gather()) == arrow.checksum(straight._ema.gather())


def test_published_weights_are_the_trained_ones_with_their_checksum(tmp_path):
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    table, before = learner.publish()
    [(version, _, after)] = train(learner, policy, recipe, [0])
    assert (version, learner.version) == (1, 1)
    assert after != before
    table, checksum = learner.publish()
    weights = arrow.unpack(table)
    assert arrow.checksum(weights) == checksum == after
    assert weights.keys() == policy.trainable().keys()
    assert all(torch.equal(weights[k], v) for k, v in policy.trainable().items())
    policy.module.first.adapter.weight.data.zero_()
    assert arrow.checksum(arrow.unpack(table)) == checksum, "published weights are a copy"


def test_users_get_the_ema_weights(tmp_path):
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    train(learner, policy, recipe, [0])
    (tmp_path / "on").mkdir()
    learner.save(tmp_path / "on")
    saved = load_file(tmp_path / "on" / "policy" / "weights.safetensors")
    assert arrow.checksum(saved) == arrow.checksum(learner._ema.gather())
    assert arrow.checksum(saved) != learner.publish()[1]

    without = fake_recipe(tmp_path, learner={"ema_decay": 0})
    learner, policy = make_learner(without)
    train(learner, policy, without, [0])
    (tmp_path / "off").mkdir()
    learner.save(tmp_path / "off")
    saved = load_file(tmp_path / "off" / "policy" / "weights.safetensors")
    assert arrow.checksum(saved) == learner.publish()[1]


def test_the_reference_is_renewed_by_count_or_by_kl(tmp_path):
    recipe = fake_recipe(tmp_path, objective={"kl": 0.1, "reference_every": 2})
    learner, policy = make_learner(recipe)
    by_count = train(learner, policy, recipe, range(3))
    assert [m["kl/reference_renewed"] for _, m, _ in by_count] == [0, 1, 0]
    present = {name: p.detach().clone() for name, p in policy.trainable().items()}
    with learner._reference():
        inside = {name: p.detach().clone() for name, p in policy.trainable().items()}
    assert any((present[k] != inside[k]).any() for k in present), "one version behind"
    assert all(torch.equal(present[k], p) for k, p in policy.trainable().items())

    recipe = fake_recipe(
        tmp_path, objective={"kl": 0.1, "reference_kl": by_count[0][1]["kl/reference"] / 2}
    )
    learner, policy = make_learner(recipe)
    assert train(learner, policy, recipe, [0])[0][1]["kl/reference_renewed"] == 1


def test_the_update_is_timed(tmp_path):
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    batch = draw_batch(policy, recipe)
    span = learner.update(batch).span
    assert (span.stage, span.worker) == ("update", "learner-0")
    assert span.stop >= span.start


def test_a_checkpoint_of_the_other_ema_setting(tmp_path):
    learner, _ = make_learner(fake_recipe(tmp_path))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    learner.save(folder)
    other, _ = make_learner(fake_recipe(tmp_path, learner={"ema_decay": 0}))
    with pytest.raises(ValueError, match=r"with the EMA on; set learner\.ema_decay above 0"):
        other.load(folder)


def test_a_checkpoint_of_another_group_says_what_to_set(tmp_path):
    write_stamp(tmp_path, stage=2, world=4)
    message = (
        r"cannot be resumed by ZeRO stage 3 on 2 learner\(s\); set "
        r"runtime.backend ray, runtime.learner.workers 4, learner.zero_stage 2$"
    )
    with pytest.raises(ValueError, match=message):
        check_stamp(tmp_path, stage=3, world=2)
    write_stamp(tmp_path, stage=None, world=1)
    with pytest.raises(ValueError, match=r"set runtime.backend local, runtime.learner.workers 1$"):
        check_stamp(tmp_path, stage=0, world=1)
    with pytest.raises(ValueError, match=r"engine\.json is missing"):
        check_stamp(tmp_path / "nowhere", stage=None, world=1)


def test_one_process_trains_float32_weights_only(tmp_path):
    recipe = fake_recipe(tmp_path)
    half = FakePolicy(full=True, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"first\.weight is torch\.bfloat16; set model\.dtype"):
        TorchEngine(recipe.learner, half)
    full = FakePolicy(full=True)
    learner = Learner(recipe, full, TorchEngine(recipe.learner, full))
    [(_, metrics, _)] = train(learner, full, recipe, [0])
    assert metrics["ratio/first_max_dev"] < 2e-6


def nan_advantage(batch, policy):
    batch.rows[1].weights.advantage[:] = float("nan")


def nan_payload(batch, policy):
    arrow.column(batch.rows[1].payload, "latents")[0] = float("nan")


def nan_condition(batch, policy):
    next(iter(arrow.unpack(batch.rows[1].condition).values()))[:] = float("inf")


def nan_weights(batch, policy):
    next(iter(policy.trainable().values())).data[0] = float("nan")


def nan_activations(batch, policy):
    policy.module.register_forward_hook(lambda module, given, out: out * float("nan"))


def nan_gradient(batch, policy):
    next(iter(policy.trainable().values())).register_hook(lambda gradient: gradient * float("nan"))


NORM = "^the gradient norm is nan: "


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            nan_advantage,
            f"{NORM}the advantage in the weights of group 1 has NaN or",
        ),
        (nan_payload, f"{NORM}the latents in the payload of group 1 has NaN or"),
        (
            nan_condition,
            rf"{NORM}the \w+ in the condition of group 1 has NaN or",
        ),
        (nan_weights, r"^1 of the trained weights are NaN or infinite \(.*\) before update 0, "),
        (nan_activations, f"{NORM}so is the loss, and .* finite: activations overflow; set model"),
        (nan_gradient, f"{NORM}the loss and the data of .* are finite; set a lower learner.lr$"),
    ],
)
def test_what_is_not_finite_ends_the_update_and_is_named(tmp_path, spoil, said):
    recipe = fake_recipe(tmp_path)
    learner, policy = make_learner(recipe)
    batch = draw_batch(policy, recipe)
    spoil(batch, policy)
    with pytest.raises(FloatingPointError, match=said):
        learner.update(batch)


class Counted(TorchEngine):
    """One rank after the other: the gradients of all add up in the same weights."""

    passes = 0

    def backward(self, loss, *, last):
        self.passes += 1
        super().backward(loss, last=last)


@pytest.mark.parametrize("process", [lambda recipe: recipe, replayed, forward])
def test_invariant_6_any_number_of_images_in_any_cut(tmp_path, process):
    """Gradients and sums of every cut are those of one batch, and all ranks go through the same
    number of passes: where one has fewer, ZeRO's others wait for it."""
    expected = None
    for micro_batch, world in [(100, 1), (1, 1), (2, 2), (3, 4), (4, 3), (7, 2), (100, 5), (2, 17)]:
        recipe = process(fake_recipe(tmp_path, learner={"micro_batch": micro_batch}))
        policy = FakePolicy()
        engine = Counted(recipe.learner, policy)
        learner = Learner(recipe, policy, engine)
        batch = draw_batch(FakePolicy(), recipe, groups=3, images=5)
        engine.world = world
        passes, tallies = set(), []
        for engine.rank in range(world):
            engine.passes = 0
            mine = own(learner, batch)
            images, parts = Images(mine, learner._process.columns(mine)), learner._parts(mine)
            learner._process.begin(learner._batches(images, parts[1:]))
            tallies.append([learner._accumulate(images, part).sums for part in parts])
            passes.add(engine.passes)
        assert len(passes) == 1, (micro_batch, world)
        sums = sum(torch.stack(rank) for rank in tallies)
        gradient = torch.cat([weight.grad.flatten() for weight in policy.trainable().values()])
        expected = expected or (sums, gradient)
        torch.testing.assert_close(sums, expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-4, atol=1e-7)
        assert gradient.abs().max() > 1e-4
