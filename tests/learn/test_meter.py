from contextlib import nullcontext

import pytest
import torch
from torch import nn

from percent_ray.flow.noise import generator
from percent_ray.learn.meter import BUCKETS, Meter, Sketch

CPU = torch.device("cpu")


def draw(name, *shape):
    return torch.randn(*shape, generator=generator("test", name))


def sketch(tensors, buckets=BUCKETS):
    sums = torch.zeros(buckets, dtype=torch.float64)
    made = Sketch(CPU)
    for name, tensor in tensors.items():
        made.add(name, tensor, sums)
    return sums


def test_a_sketch_keeps_norms_and_inner_products_of_tensors_of_any_structure():
    """A matrix of rank 1 as well as noise: 0.6 % is what 65,536 numbers can do."""
    one = {"a": draw("a", 700, 300), "b": torch.outer(draw("u", 900), draw("v", 400))}
    other = {
        name: 0.5 * tensor + draw(f"other {name}", *tensor.shape) for name, tensor in one.items()
    }
    first, second = (sketch(named) for named in (one, other))
    for x, y, a, b in ((one, one, first, first), (one, other, first, second)):
        exact = sum((x[k].double() * y[k].double()).sum().item() for k in x)
        assert (a @ b).item() == pytest.approx(exact, rel=0.03)


def test_a_sketch_is_linear_and_a_function_of_names():
    x, y = draw("x", 150_000), draw("y", 150_000)
    added = sketch({"w": x}) + sketch({"w": y})
    torch.testing.assert_close(sketch({"w": x + y}), added, rtol=0, atol=1e-5)
    assert torch.equal(sketch({"w": x}), sketch({"w": x}))
    assert not torch.equal(sketch({"w": x}), sketch({"other": x}))


def test_equal_tensors_of_two_names_do_not_add_up_in_a_sketch():
    """|a|^2 + |a|^2, and not |2 a|^2: no element of one shares place and sign with its twin."""
    x = draw("x", 65_536)
    both = sketch({"a": x, "b": x})
    assert both.square().sum().item() == pytest.approx(2 * 65_536, rel=0.05)


def test_a_tensor_longer_than_the_signs(monkeypatch):
    monkeypatch.setattr("percent_ray.learn.meter.PERIOD", 4_093)
    monkeypatch.setattr("percent_ray.learn.meter.BUCKETS", 1_024)
    found = sketch({"x": torch.ones(100_000)}, buckets=1_024)
    assert found.square().sum().item() == pytest.approx(100_000, rel=0.2)


def test_a_small_tensor_is_kept_as_it_is_but_for_signs():
    x = draw("x", 500)
    assert torch.equal(sketch({"x": x}).abs().sort().values[-500:], x.double().abs().sort().values)


class FakeEngine:
    """One of `world` ranks whose gradients are seen `scale`-fold."""

    rank, device = 0, CPU

    def __init__(self, world=1):
        self.world, self.scale = world, float(world)

    def whole(self):
        return nullcontext()

    def all_reduce(self, values, op):
        return values * (self.world if op == "sum" else 1)


class FakePolicy:
    def __init__(self, size=20_000):
        self.weight = nn.Parameter(torch.zeros(size))

    def trainable(self):
        return {"weight": self.weight}


def units(meter, policy, gradients, shares, *, independent=True):
    """One optimizer step whose units have these gradients, each in two passes."""
    for gradient, share in zip(gradients, shares, strict=True):
        for part in (0.25, 0.75):
            (policy.weight * (meter._engine.scale * part * gradient)).sum().backward()
        meter.end_unit(share)
    meter.end_step(independent=independent)
    policy.weight.grad = None


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]], ids=str)
def test_signal_and_noise_are_right_whatever_the_size_of_the_units(shares):
    """Gradients of mean mu whose noise falls with the images of a unit."""
    policy = FakePolicy()
    meter = Meter(policy, FakeEngine())
    mu = torch.full((20_000,), 0.02)
    for step in range(40):
        gradients = [
            share * mu + (share**0.5) * 0.05 * draw(f"{step} {unit}", 20_000)
            for unit, share in enumerate(shares)
        ]
        units(meter, policy, gradients, shares)
    found = meter.metrics()
    assert found["signal/gradient"] == pytest.approx(20_000 * 0.02**2, rel=0.05)
    assert found["signal/noise"] == pytest.approx(20_000 * 0.05**2, rel=0.05)


def test_pure_noise_has_no_signal():
    policy = FakePolicy()
    meter = Meter(policy, FakeEngine())
    for step in range(40):
        units(meter, policy, [draw(f"{step} {u}", 20_000) for u in range(4)], [0.25] * 4)
    found = meter.metrics()
    assert abs(found["signal/gradient"]) < 0.01 * found["signal/noise"]


def test_all_ranks_and_the_engines_scale():
    """Two ranks that have the same units each are one process with all of them."""
    one, two = FakePolicy(), FakePolicy()
    gradients = [draw(f"{u}", 20_000) for u in range(3)]
    alone, group = Meter(one, FakeEngine()), Meter(two, FakeEngine(world=2))
    units(alone, one, [*gradients, *gradients], [1 / 6] * 6)
    units(group, two, gradients, [1 / 6] * 3)
    expected, found = alone.metrics(), group.metrics()
    assert found == pytest.approx(expected)


def test_one_unit_and_parts_of_a_group_measure_nothing():
    policy = FakePolicy()
    meter = Meter(policy, FakeEngine())
    units(meter, policy, [draw("g", 20_000)], [1.0])
    assert "signal/gradient" not in meter.metrics()
    halves = [draw("g", 20_000), draw("h", 20_000)]
    units(meter, policy, halves, [0.5, 0.5], independent=False)
    found = meter.metrics()
    assert "signal/gradient" not in found
    assert "signal/descent" in found


def step(meter, policy, gradient, update):
    """One learner step: its gradient, then what the optimizer makes of the weights."""
    units(meter, policy, [0.5 * gradient, 0.5 * gradient], [0.5, 0.5])
    with torch.no_grad():
        policy.weight += update
    return meter.metrics()


def test_descent_is_below_0_where_the_last_step_went_too_far():
    """A bowl |w - 1|^2 / 2: short steps go on downhill, one of 1.5 lengths passes the middle."""
    for length, expected in ((0.5, 1.0), (1.5, -1.0)):
        policy = FakePolicy()
        meter = Meter(policy, FakeEngine())
        found = []
        for _ in range(2):
            gradient = policy.weight.detach() - 1
            found.append(step(meter, policy, gradient, -length * gradient))
        assert "signal/descent" not in found[0]
        assert found[1]["signal/descent"] == pytest.approx(expected, abs=1e-3)
        assert found[1]["signal/update_cosine"] == pytest.approx(expected, abs=1e-3)


def test_the_cosine_of_successive_updates():
    policy = FakePolicy()
    meter = Meter(policy, FakeEngine())
    ahead, across = draw("ahead", 20_000), draw("across", 20_000)
    found = []
    for update in (ahead, 3 * ahead, -ahead, across):
        found.append(step(meter, policy, ahead, update).get("signal/update_cosine"))
    assert found[0] is None
    assert found[1:3] == pytest.approx([1, -1], abs=1e-6)
    assert abs(found[3]) < 0.03
