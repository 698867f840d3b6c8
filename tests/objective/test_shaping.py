import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percent_ray.objective.advantage import advantages
from percent_ray.objective.entropy import perceptual_log_prob
from percent_ray.objective.shaping import pcvae_values, pec_values, step_weights

few = settings(max_examples=10, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@few
@given(seed=st.integers(0, 2**20), lam=st.sampled_from([0.03, 0.05, 0.10]))
def test_shaped_rewards_equal_a_transcription_of_equations_16_to_21(seed, lam):
    rewards, log_p, log_old = (
        normal(seed, 3, 4),
        normal(seed + 1, 3, 4, 5),
        normal(seed + 2, 3, 4, 5),
    )
    omega = step_weights(torch.tensor([0.9, 0.6, 0.5, 0.4, 0.3]), "variance")
    pec, pcvae = np.zeros((3, 4)), np.zeros((3, 4))
    for g in range(3):
        for k in range(4):
            r = rewards[g, k].item()
            pec[g, k] = pcvae[g, k] = r
            for i in range(5):
                w, p, old = omega[i].item(), log_p[g, k, i].item(), log_old[g, k, i].item()
                pec[g, k] += lam / 5 * w * -p
                pcvae[g, k] -= lam / 5 * w * (p - old)
    term = pec_values(log_p, omega).mean(-1)
    np.testing.assert_allclose(rewards + lam * term, pec, atol=1e-5)
    term = pcvae_values(log_p, log_old, omega).mean(-1)
    np.testing.assert_allclose(rewards + lam * term, pcvae, atol=1e-5)


def test_signs():
    """PEC rewards features that move; PCVAE rewards a perceptual log-prob below the policy's."""
    mean, std, omega = torch.zeros(2, 1, 4), torch.tensor([0.5]), torch.ones(1)
    moved = torch.stack([torch.full((1, 4), 0.1), torch.full((1, 4), 0.9)])
    log_p = perceptual_log_prob(moved, mean, std)
    still, far = pec_values(log_p, omega).mean(-1)
    assert far > still
    near, below = pcvae_values(log_p, torch.zeros(2, 1), omega).mean(-1)
    assert below > near


def test_step_weights_have_mean_one():
    std = torch.tensor([0.9, 0.6, 0.3])
    assert torch.equal(step_weights(std, "uniform"), torch.ones(3))
    variance = step_weights(std, "variance")
    assert variance.mean().item() == pytest.approx(1)
    assert (variance[0] / variance[2]).item() == pytest.approx(9)
    with pytest.raises((ValueError, TypeError), match="std"):
        step_weights(std, "std")


def test_variance_weights_leave_the_squared_distance():
    """With omega ~ s^2 the term is sum ||d phi||^2 and constants of the group."""
    sample, mean, std = normal(0, 6, 3, 8), normal(1, 6, 3, 8), torch.tensor([0.9, 0.5, 0.3])
    log_p = perceptual_log_prob(sample, mean, std)
    term = pec_values(log_p, step_weights(std, "variance")).mean(-1)
    distance = (sample - mean).square().mean(-1).sum(-1) / (6 * std.square().mean())
    torch.testing.assert_close(term - term.mean(), distance - distance.mean())


def test_constants_of_the_group_do_not_move_advantages():
    rewards, log_p, omega = normal(0, 2, 6), normal(1, 2, 6, 3), torch.ones(3)
    shaped = rewards + 0.1 * pec_values(log_p, omega).mean(-1)
    shifted = rewards + 0.1 * pec_values(log_p + 3, omega).mean(-1)
    torch.testing.assert_close(
        advantages(shaped, std="group"), advantages(shifted, std="group"), rtol=1e-4, atol=1e-5
    )
