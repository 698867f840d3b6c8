import pytest
import torch

from percent_ray.objective.covariance import largest


def test_largest_takes_exactly_its_share_even_among_equals():
    values = torch.tensor([[1.0, 3.0], [3.0, 3.0]])
    assert largest(values, 0.5).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_a_share_of_none_or_all_says_so(fraction):
    with pytest.raises(ValueError, match="set it above 0 and below 1"):
        largest(torch.zeros(4), fraction)
