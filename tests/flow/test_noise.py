import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percent_ray.flow.noise import INITIAL, group_noise, noise

few = settings(max_examples=20, deadline=None, derandomize=True)
ids = st.tuples(
    st.integers(0, 2**40), st.integers(-3, 10**9), st.integers(0, 99), st.integers(INITIAL, 40)
)


@few
@given(first=ids, second=ids)
def test_noise_is_a_function_of_its_ids(first, second):
    """Invariant 5."""
    draw = noise(*first, (2, 3))
    torch.manual_seed(first[0])
    assert torch.equal(draw, noise(*first, (2, 3)))
    assert torch.equal(draw, noise(*second, (2, 3))) == (first == second)


def test_noise_changes_with_every_id():
    base = (3, 5, 7, 9)
    draws = [noise(*base, (4,))]
    for place in range(4):
        changed = tuple(value + (i == place) for i, value in enumerate(base))
        draws.append(noise(*changed, (4,)))
    draws.append(noise(3, 57, 9, INITIAL, (4,)))
    draws.append(noise(35, 7, 9, INITIAL, (4,)))
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_noise_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    noise(0, 0, 0, 0, (3,))
    assert torch.equal(state, torch.get_rng_state())


def test_noise_is_standard_normal_and_uncorrelated_between_images():
    draws = group_noise(0, 0, range(8), INITIAL, (4, 2500)).flatten(1)
    torch.testing.assert_close(draws.mean(1), torch.zeros(8), rtol=0, atol=0.05)
    covariance = (draws.unsqueeze(0) * draws.unsqueeze(1)).mean(-1)
    torch.testing.assert_close(covariance, torch.eye(8), rtol=0, atol=0.06)


def test_group_noise_stacks_the_images_draws():
    draws = group_noise(1, 2, [4, 0], 3, (2, 2))
    assert torch.equal(draws[0], noise(1, 2, 4, 3, (2, 2)))
    assert torch.equal(draws[1], noise(1, 2, 0, 3, (2, 2)))
