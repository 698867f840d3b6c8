"""The runtime against Flow-GRPO as others would write it, without this package's functions."""

import pytest

from benchmarks import step


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "pec"), [(1.0, False), (4.5, True)])
def test_a_step_is_plain_flow_grpo_s(guidance, pec):
    step.Pair(2, guidance, pec).apart()  # raises where they differ


@pytest.mark.slow
def test_another_step_is_told_apart():
    pair = step.Pair(2, 1.0, pec=False)
    pair.plain.trained -= 1
    with pytest.raises(ValueError, match="not the same step"):
        pair.apart()
