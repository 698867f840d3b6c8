import pytest
import torch

from percent_ray.flow.noise import INITIAL, group_noise
from percent_ray.flow.sampler import ode, rollout
from percent_ray.flow.sde import transition

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.2, 0.0])
SHAPE = (3, 4, 4)


def curved(latents, sigma):
    return torch.tanh(latents) - sigma.view(-1, 1, 1, 1) * latents.flip(-1)


def sample(velocity=curved, images=range(4), **options):
    defaults = {
        "steps": range(1, 4),
        "noise_level": 0.7,
        "kind": "flow_sde",
        "storage_dtype": torch.bfloat16,
    }
    return rollout(
        velocity,
        group_noise(0, 0, images, INITIAL, SHAPE),
        SIGMAS,
        noise_at=lambda i: group_noise(0, 0, images, i, SHAPE),
        **(defaults | options),
    )


def test_ode_of_a_straight_flow_reaches_its_end():
    noise, image = group_noise(0, 0, range(4), INITIAL, SHAPE), torch.full((4, *SHAPE), 2.0)
    torch.testing.assert_close(ode(lambda x, sigma: noise - image, noise, SIGMAS), image)


def test_ode_converges_to_the_exact_solution():
    noise = group_noise(0, 0, range(4), INITIAL, SHAPE)
    exact = noise * torch.e
    errors = [
        (ode(lambda x, sigma: -x, noise, torch.linspace(1, 0, n + 1)) - exact).abs().max()
        for n in (16, 64)
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("kind", ["flow_sde", "cps"])
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32])
def test_replay_from_storage_has_ratio_one(kind, storage):
    """Invariant 3."""
    path = sample(kind=kind, storage_dtype=storage)
    assert path.latents.dtype == path.means.dtype == path.final.dtype == storage
    for row, i in enumerate(range(1, 4)):
        x = path.latents[row]
        replay = transition(
            curved(x.float(), SIGMAS[i].expand(4)),
            x,
            SIGMAS[i],
            SIGMAS[i + 1],
            sigma_second=SIGMAS[1],
            noise_level=0.7,
            kind=kind,
        )
        assert torch.equal(replay.log_prob(path.latents[row + 1]), path.log_probs[row])
        assert torch.equal(replay.mean.to(storage), path.means[row])


def test_final_latents_continue_the_last_sde_step():
    path = sample(storage_dtype=torch.float32)
    after = ode_from(path.latents[-1], 4)
    torch.testing.assert_close(path.final, after)
    whole = sample(steps=range(5))
    assert torch.equal(whole.final, whole.latents[-1])
    assert torch.equal(
        whole.latents[0], group_noise(0, 0, range(4), INITIAL, SHAPE).to(torch.bfloat16)
    )


def ode_from(latents, start):
    for i in range(start, len(SIGMAS) - 1):
        v = curved(latents, SIGMAS[i].expand(len(latents)))
        latents = latents + (SIGMAS[i + 1] - SIGMAS[i]) * v
    return latents


def test_an_image_does_not_depend_on_its_batch():
    """Invariant 5."""
    whole, part = sample(), sample(images=range(2, 4))
    assert torch.equal(whole.final[2:], part.final)
    assert torch.equal(whole.log_probs[:, 2:], part.log_probs)


def test_noise_is_read_at_the_sde_steps_only():
    asked = []

    def noise_at(i):
        asked.append(i)
        return torch.zeros(4, *SHAPE)

    path = rollout(
        curved,
        group_noise(0, 0, range(4), INITIAL, SHAPE),
        SIGMAS,
        steps=range(2, 4),
        noise_level=0.7,
        kind="flow_sde",
        noise_at=noise_at,
        storage_dtype=torch.float32,
    )
    assert asked == [2, 3]
    assert path.latents.shape == (3, 4, *SHAPE)
    assert path.log_probs.shape == (2, 4)
    assert torch.equal(path.latents[1:], path.means)
    assert path.clean_latents is None


@pytest.mark.parametrize("clean_steps", [range(1, 5), (2, 4)])
def test_clean_predictions(clean_steps):
    path = sample(steps=range(1, 5), clean_steps=clean_steps, storage_dtype=torch.float32)
    assert path.clean_latents is not None
    assert path.clean_means is not None
    assert len(path.clean_latents) == len(path.clean_means) == len(clean_steps)
    for row, i in enumerate(clean_steps):
        sigma = SIGMAS[i + 1].expand(4)
        ends = (path.latents[i], path.means[i - 1])
        for end, clean in zip(ends, (path.clean_latents[row], path.clean_means[row]), strict=True):
            torch.testing.assert_close(clean, end - SIGMAS[i + 1] * curved(end, sigma))


def test_clean_costs_one_call_a_step_but_for_the_last():
    calls = []

    def counted(latents, sigma):
        calls.append(sigma[0].item())
        return curved(latents, sigma)

    sample(counted, steps=range(1, 5))
    assert len(calls) == 5
    calls.clear()
    sample(counted, steps=range(1, 5), clean_steps=range(1, 5))
    assert len(calls) == 5 + 3
    calls.clear()
    sample(counted, steps=range(1, 5), clean_steps=(3,))
    assert len(calls) == 5 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": range(3, 6)}, "not a non-empty window of 5 steps"),
        ({"steps": range(0)}, "not a non-empty window"),
        ({"noise_level": 0.0}, "leaves no noise"),
        ({"clean_steps": (0, 1)}, "clean_steps"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(**options)
