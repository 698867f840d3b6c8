"""Whether the actors of an evaluation find a place."""

import pytest

from percent_ray.evaluation.engine import _check
from percent_ray.runtime.placement import Machine


def machine(cpus: float, gpus: float) -> Machine:
    has = {"CPU": cpus, "GPU": gpus}
    return Machine("a", has, has)


def test_a_share_of_a_card_lies_on_one_card():
    sizes = {"draw": (3, 0.6), "clip": (1, 0.2)}
    with pytest.raises(ValueError, match=r"^draw: 3 actors of 1 CPU and 0.6 GPU asked, 2 of them"):
        _check(sizes, [machine(16, 2)])
    _check(sizes, [machine(16, 2), machine(1, 1)])


def test_a_cpu_is_left_for_kept_pictures():
    _check({"draw": (1, 0.0), "clip": (1, 0.0)}, [machine(3, 0)])
    with pytest.raises(ValueError, match=r"^reading: 1 actors .* machines of 2 CPUs and 0 GPUs"):
        _check({"draw": (1, 0.0), "clip": (1, 0.0)}, [machine(2, 0)])
