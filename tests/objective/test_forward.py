import math

import numpy as np
import pytest
import torch

from percent_ray.objective import forward

B, SHAPE = 5, (2, 3, 4)


def draw(name, *shape, dtype=torch.float32):
    from percent_ray.flow.noise import generator

    return torch.randn(*shape, generator=generator("test", name)).to(dtype).float()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def case(request):
    """Velocities as a model of that dtype has them, in float32 as `Policy.velocity` gives them."""
    clean, noise = draw("clean", B, *SHAPE), draw("noise", B, *SHAPE)
    return {
        "velocity": draw("velocity", B, *SHAPE, dtype=request.param).requires_grad_(),
        "old": draw("old", B, *SHAPE, dtype=request.param),
        "target": noise - clean,
        "clean": clean,
        "noise": noise,
        "time": torch.tensor([1.0, 0.9, 0.5, 0.2, 0.01]),
        "advantage": torch.tensor([0.4, -0.7, 5.0, -5.0, 0.0]),
    }


def nft(case, beta=1.0, clip=5.0):
    return forward.nft_loss(
        case["velocity"],
        case["old"],
        case["target"],
        case["time"],
        case["advantage"],
        beta=beta,
        clip=clip,
    )


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("clip", [5.0, 1.5])
def test_nft_equals_its_equation_transcribed(case, beta, clip):
    """In x0 space, image by image, in float64 numpy."""
    x0, eps = case["clean"].double().numpy(), case["noise"].double().numpy()
    v, old = (case[k].detach().double().numpy() for k in ("velocity", "old"))
    found = nft(case, beta, clip)
    for i in range(B):
        t, a = float(case["time"][i]), float(case["advantage"][i])
        x_t = (1 - t) * x0[i] + t * eps[i]
        q = min(1, max(0, a / clip / 2 + 0.5))
        plus = x_t - t * (beta * v[i] + (1 - beta) * old[i])
        minus = x_t - t * ((1 + beta) * old[i] - beta * v[i])
        w_plus, w_minus = (max(1e-5, np.abs(p - x0[i]).mean()) for p in (plus, minus))
        expected = q * ((plus - x0[i]) ** 2).mean() / w_plus
        expected += (1 - q) * ((minus - x0[i]) ** 2).mean() / w_minus
        assert found[i].item() == pytest.approx(clip * expected / beta, rel=1e-4)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_at_the_old_velocity_nft_is_advantage_weighted_flow_matching(case, beta):
    """Its gradient there is that of A t^2 |v - target|^2 / w, with w = t mean |v - target|."""
    case["old"] = case["velocity"].detach()
    (found,) = torch.autograd.grad(nft(case, beta).sum(), case["velocity"])
    v = case["velocity"]
    square = (v - case["target"]).square().flatten(1).mean(1)
    weight = (case["time"] * (v - case["target"]).abs().flatten(1).mean(1)).detach()
    matching = case["advantage"] * case["time"] ** 2 * square / weight
    (expected,) = torch.autograd.grad(matching.sum(), v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert found.abs().max() > 1e-3


def test_nft_does_not_follow_the_old_velocity_or_a_weight(case):
    case["old"].requires_grad_()
    nft(case).sum().backward()
    assert case["old"].grad is None


def test_beyond_the_clip_an_advantage_counts_as_the_clip(case):
    far = dict(case, advantage=3 * case["advantage"])
    assert torch.equal(nft(far)[2:4], nft(case)[2:4])


def test_awm_equals_its_equation_transcribed(case):
    found, _ = forward.awm_loss(
        case["velocity"],
        case["old"],
        case["target"],
        case["advantage"],
        clip_low=0.1,
        clip_high=0.2,
    )
    for i in range(B):
        target = case["target"][i].double()
        now, before = (
            (case[k][i].detach().double() - target).square().mean().item()
            for k in ("velocity", "old")
        )
        ratio, a = math.exp(before - now), case["advantage"][i].item()
        clipped = min(1.2, max(0.9, ratio))
        assert found[i].item() == pytest.approx(max(-a * ratio, -a * clipped), rel=1e-4)


def test_at_the_old_velocity_awm_is_advantage_weighted_flow_matching(case):
    v = case["velocity"]
    loss, _ = forward.awm_loss(
        v, v.detach(), case["target"], case["advantage"], clip_low=0.1, clip_high=0.1
    )
    (found,) = torch.autograd.grad(loss.sum(), v)
    square = (v - case["target"]).square().flatten(1).mean(1)
    (expected,) = torch.autograd.grad((case["advantage"] * square).sum(), v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def test_noised_latents_lie_on_the_line_from_image_to_noise():
    clean, noise = draw("clean", 3, *SHAPE), draw("noise", 3, *SHAPE)
    found = forward.noised(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(found[0], clean[0])
    torch.testing.assert_close(found[1], 0.75 * clean[1] + 0.25 * noise[1])
    torch.testing.assert_close(found[2], noise[2])


def test_times_of_a_schedule_are_its_own_in_random_order():
    schedule = torch.linspace(1, 0.1, 10)
    times = forward.draw_times(schedule, count=10, shift=3.0, source=source())
    assert sorted(times.tolist(), reverse=True) == schedule.tolist()
    assert times.tolist() != schedule.tolist()
    three = forward.draw_times(schedule, count=3, shift=3.0, source=source())
    assert len(three.unique()) == 3
    assert set(three.tolist()) <= set(schedule.tolist())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_times_have_their_distribution_and_one_in_each_part(shift):
    times = torch.stack(
        [forward.draw_times(None, count=4, shift=shift, source=source(i)) for i in range(4000)]
    )
    u = times / (shift + (1 - shift) * times)
    assert ((times > 0) & (times <= 1)).all()
    assert (u.sort(1).values.mul(4).long().clamp_max(3) == torch.arange(4)).all()
    for place in u.T:
        assert place.mean().item() == pytest.approx(0.5, abs=0.02), "in random order"
    quantiles = torch.quantile(u.flatten(), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.01, rtol=0)


def test_the_published_rule_of_the_old_policy():
    """PickScore and GenEval: min(0.001 step, 0.5). OCR: 0 up to 75, then min(0.0075 (step - 75),
    0.999)."""
    usual = {"first": 0.0, "rise": 0.001, "after": 0, "most": 0.5}
    steps = (0, 1, 250, 499, 500, 5000)
    found = [forward.old_decay(step, **usual) for step in steps]
    assert found == pytest.approx([0, 0.001, 0.25, 0.499, 0.5, 0.5])
    ocr = {"first": 0.0, "rise": 0.0075, "after": 75, "most": 0.999}
    found = [forward.old_decay(step, **ocr) for step in (0, 75, 77, 1000)]
    assert found == pytest.approx([0, 0, 0.015, 0.999])
