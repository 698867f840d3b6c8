import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from percent_ray.flow.sde import Transition, transition

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flow_sde.json").read_text())
KINDS = {"sde": "flow_sde", "cps": "cps"}
few = settings(max_examples=12, deadline=None, derandomize=True)


def step(
    velocity, latents, sigma=0.8, sigma_next=0.7, *, second=0.9, noise_level=0.7, kind="flow_sde"
) -> Transition:
    return transition(
        velocity,
        latents,
        sigma,
        sigma_next,
        sigma_second=second,
        noise_level=noise_level,
        kind=kind,
    )


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def column(transitions: Transition) -> torch.Tensor:
    return transitions.std.view(-1, *[1] * (transitions.mean.ndim - 1))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_vectors(case):
    for i, record in enumerate(case["steps"]):
        x, v, noise, mean, drawn = (
            torch.tensor(record[key]).view(case["shape"])
            for key in ("x", "v", "noise", "mean", "next")
        )
        policy = step(
            v,
            x,
            case["sigmas"][i],
            case["sigmas"][i + 1],
            second=case["sigmas"][1],
            noise_level=case["noise_level"],
            kind=KINDS[case["sde"]],
        )
        close = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(policy.mean, mean, **close)
        torch.testing.assert_close(policy.std, torch.tensor([record["std"]]).expand(2), **close)
        torch.testing.assert_close(policy.draw(noise), drawn, **close)
        torch.testing.assert_close(
            policy.log_prob(drawn), torch.tensor(record["log_prob"]), **close
        )


def test_every_golden_step_at_once_equals_step_by_step():
    for case in GOLDEN:
        sigmas = torch.tensor(case["sigmas"])
        x, v, drawn = (
            torch.tensor([record[key] for record in case["steps"]]) for key in ("x", "v", "next")
        )
        options = {
            "second": sigmas[1],
            "noise_level": case["noise_level"],
            "kind": KINDS[case["sde"]],
        }
        mixed = step(v, x, sigmas[:-1], sigmas[1:], **options)
        for i in range(len(x)):
            row = slice(i, i + 1)
            alone = step(v[row], x[row], case["sigmas"][i], case["sigmas"][i + 1], **options)
            assert torch.equal(mixed.mean[row], alone.mean)
            assert torch.equal(mixed.std[row], alone.std)
            assert torch.equal(mixed.log_prob(drawn)[row], alone.log_prob(drawn[row]))


@few
@given(
    storage=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    kind=st.sampled_from(["flow_sde", "cps", "dance"]),
    seed=st.integers(0, 2**20),
)
def test_first_ratio_is_one_after_storage(storage, kind, seed):
    latents = normal(seed, 6, 4, 5, 5).to(storage)
    velocity = normal(seed + 1, 6, 4, 5, 5)
    drawing = step(velocity, latents.float(), kind=kind)
    stored = drawing.draw(normal(seed + 2, 6, 4, 5, 5)).to(storage)
    old = drawing.log_prob(stored)
    assert torch.equal(
        (step(velocity, latents, kind=kind).log_prob(stored) - old).exp(), old * 0 + 1
    )
    micro_batches = [
        step(velocity[rows], latents[rows], kind=kind).log_prob(stored[rows])
        for rows in torch.arange(6).split([1, 2, 3])
    ]
    assert torch.equal(torch.cat(micro_batches), old)


@few
@given(
    sigma=st.floats(0.2, 1),
    drop=st.floats(0.02, 0.9),
    noise_level=st.floats(0.1, 1),
    seed=st.integers(0, 2**20),
)
def test_log_prob_and_entropy_equal_torch_distributions(sigma, drop, noise_level, seed):
    latents, one, drawn = (normal(seed + i, 3, 2, 4) for i in range(3))
    steps = (sigma, sigma * (1 - drop))
    first = step(one, latents, *steps, noise_level=noise_level)
    reference = Normal(first.mean, column(first).expand_as(first.mean))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(
        first.log_prob(drawn), reference.log_prob(drawn).flatten(1).mean(1), **close
    )
    torch.testing.assert_close(first.entropy(), reference.entropy().flatten(1).mean(1), **close)


@pytest.mark.parametrize("kind", ["flow_sde", "cps", "dance"])
def test_policy_entropy_is_the_schedules_constant(kind):
    """Invariant 7: two policies that share nothing but the schedule have one entropy."""
    one = step(normal(0, 4, 6), normal(1, 4, 6), kind=kind)
    two = step(100 * normal(2, 4, 6), normal(3, 4, 6), kind=kind)
    assert torch.equal(one.entropy(), two.entropy())
    louder = step(normal(0, 4, 6), normal(1, 4, 6), kind=kind, noise_level=0.9)
    assert (louder.entropy() > one.entropy()).all()


def test_entropy_by_monte_carlo():
    policy = step(normal(0, 2, 200_000), normal(1, 2, 200_000), torch.tensor([1.0, 0.3]), 0.2)
    drawn = policy.draw(normal(2, 2, 200_000))
    torch.testing.assert_close(-policy.log_prob(drawn), policy.entropy(), rtol=0, atol=8e-3)


@pytest.mark.parametrize("kind", ["flow_sde", "cps", "dance"])
@pytest.mark.parametrize("sigma", [1.0, 0.6])
def test_no_noise_is_the_euler_step(kind, sigma):
    velocity, latents = normal(0, 2, 3, 3), normal(1, 2, 3, 3)
    policy = step(velocity, latents, sigma, 0.4, noise_level=0.0, kind=kind)
    torch.testing.assert_close(policy.mean, latents + (0.4 - sigma) * velocity)
    assert torch.equal(policy.std, torch.zeros(2))


def test_diffusion_is_std_without_dt():
    policy = step(normal(0, 2, 3), normal(1, 2, 3), torch.tensor([0.8, 0.5]), 0.25)
    torch.testing.assert_close(
        policy.std, policy.diffusion * torch.tensor([0.8 - 0.25, 0.5 - 0.25]).sqrt()
    )


def test_low_precision_velocity_is_computed_in_float32():
    velocity, latents = normal(0, 2, 3).bfloat16(), normal(1, 2, 3).bfloat16()
    policy = step(velocity, latents)
    assert policy.mean.dtype == policy.std.dtype == torch.float32
    assert torch.equal(policy.mean, step(velocity.float(), latents.float()).mean)


def test_float_and_tensor_sigmas_act_the_same():
    velocity, latents, drawn = (normal(i, 2, 3) for i in range(3))
    one, two, three = (
        step(velocity, latents, convert(0.8), convert(0.7), second=convert(0.9))
        for convert in (float, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64))
    )
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.mean, three.mean)
    assert torch.equal(one.std, two.std)
    assert torch.equal(one.std, three.std)
    assert torch.equal(one.log_prob(drawn), three.log_prob(drawn))


def test_log_prob_gradient_reaches_the_mean_only():
    velocity, drawn = (normal(i, 2, 5).requires_grad_() for i in range(2))
    step(velocity, normal(3, 2, 5)).log_prob(drawn).sum().backward()
    assert velocity.grad is not None
    assert velocity.grad.abs().min() > 0
    assert drawn.grad is None


def test_bad_arguments_say_what_to_set():
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"noise_level is -0\.1; set it"):
        step(x, x, noise_level=-0.1)
    with pytest.raises((ValueError, TypeError), match="walk"):
        step(x, x, kind="walk")


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.9), (0.8, 0.7), (0.3, 0.0)])
def test_dance_is_the_score_form_written_out(sigma, sigma_next):
    """x + v dt - eta^2 / 2 score dt, with the score of the clean prediction; also at sigma 1."""
    x, v, eta = normal(0, 3, 2, 4), normal(1, 3, 2, 4), 0.3
    policy = step(v, x, sigma, sigma_next, noise_level=eta, kind="dance")
    dt, clean = sigma_next - sigma, x - sigma * v
    score = -(x - (1 - sigma) * clean) / sigma**2
    torch.testing.assert_close(policy.mean, x + v * dt - 0.5 * eta**2 * score * dt)
    torch.testing.assert_close(policy.std, torch.full((3,), eta * (-dt) ** 0.5))
    torch.testing.assert_close(policy.diffusion, torch.full((3,), eta))
