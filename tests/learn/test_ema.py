import pytest
import torch

from percent_ray.learn.ema import Ema, decay
from percent_ray.learn.engine import TorchEngine
from tests.learn.fake import FakePolicy, fake_recipe


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (8, 9 / 18), (16, 17 / 26), (80, 81 / 90), (81, 0.9)]
)
def test_decay_is_flow_grpos(step, expected):
    assert decay(step, cap=0.9) == pytest.approx(expected)


def test_the_average_moves_every_few_steps(tmp_path):
    policy = FakePolicy()
    engine = TorchEngine(fake_recipe(tmp_path).learner, policy)
    ema = Ema(engine, policy.trainable(), cap=0.9, every=2)
    weight = policy.module.first.adapter.weight
    start = weight.detach().clone()
    seen = [start]
    for _ in range(4):
        weight.data += 1
        ema.step()
        seen.append(ema.gather()["first.adapter.weight"])
    assert torch.equal(seen[1], start)
    second = start.lerp(start + 2, 1 - 3 / 12)
    torch.testing.assert_close(seen[2], second)
    assert torch.equal(seen[3], seen[2])
    torch.testing.assert_close(seen[4], second.lerp(start + 4, 1 - 5 / 14))
