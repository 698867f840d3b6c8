import pytest
import torch
from torch.distributions import Normal, kl_divergence

from percent_ray.flow.sde import transition
from percent_ray.objective.penalties import gaussian_kl, reference_kl

SIGMA, SIGMA_NEXT = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.6, 0.3, 0.1])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def policy(velocity):
    return transition(
        velocity,
        normal(9, 3, 4, 2),
        SIGMA,
        SIGMA_NEXT,
        sigma_second=0.95,
        noise_level=0.7,
        kind="flow_sde",
    )


def test_gaussian_form_is_the_kl_of_the_transitions():
    one, two = policy(normal(0, 3, 4, 2)), policy(normal(1, 3, 4, 2))
    std = one.std.view(3, 1, 1)
    expected = kl_divergence(Normal(one.mean, std), Normal(two.mean, std)).flatten(1).mean(1)
    torch.testing.assert_close(reference_kl(one, two, form="gaussian"), expected)
    torch.testing.assert_close(gaussian_kl(one.mean, two.mean, one.std), expected)


def test_flow_grpo_form_is_the_true_kl_times_minus_dt():
    one, two = policy(normal(0, 3, 4, 2)), policy(normal(1, 3, 4, 2))
    torch.testing.assert_close(
        reference_kl(one, two, form="flow_grpo"),
        reference_kl(one, two, form="gaussian") * (SIGMA - SIGMA_NEXT),
    )


@pytest.mark.parametrize("form", ["gaussian", "flow_grpo"])
def test_no_kl_to_itself_and_a_pull_towards_the_reference(form):
    reference, velocity = normal(0, 3, 4, 2), normal(1, 3, 4, 2).requires_grad_()
    assert torch.equal(
        reference_kl(policy(reference), policy(reference), form=form), torch.zeros(3)
    )
    kl = reference_kl(policy(velocity), policy(reference), form=form)
    (gradient,) = torch.autograd.grad(kl.sum(), velocity)
    assert torch.equal(gradient.sign(), (velocity - reference).sign())


def test_the_reference_gets_no_gradient():
    velocity = normal(0, 3, 4, 2).requires_grad_()
    assert not reference_kl(
        policy(normal(1, 3, 4, 2)), policy(velocity), form="gaussian"
    ).requires_grad
    with pytest.raises((ValueError, TypeError), match="k3"):
        reference_kl(policy(velocity), policy(velocity), form="k3")
