import pytest

from percent_ray.slots import Slots


def drawn(slots: Slots) -> list[tuple[int, int]]:
    return [(slot.group_id, slot.version) for slot in slots.acquire()]


def test_synchronous_slots_wait_for_their_version():
    slots = Slots(groups_per_step=2, max_staleness=0, checkpoint_every=100, steps=2)
    assert drawn(slots) == [(0, 0), (1, 0)]
    assert drawn(slots) == []
    slots.publish(1)
    assert drawn(slots) == [(2, 1), (3, 1)]
    slots.publish(2)
    assert drawn(slots) == [], "the run has two steps"


def test_staleness_1_samples_the_next_step_under_the_version_that_is_out():
    slots = Slots(groups_per_step=2, max_staleness=1, checkpoint_every=100, steps=4)
    assert drawn(slots) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    slots.publish(1)
    assert drawn(slots) == [(4, 1), (5, 1)]


def test_a_checkpoint_is_a_barrier():
    slots = Slots(groups_per_step=2, max_staleness=1, checkpoint_every=2, steps=4)
    assert [group for group, _ in drawn(slots)] == [0, 1, 2, 3]
    slots.publish(1)
    assert drawn(slots) == []
    slots.publish(2)
    assert drawn(slots) == [(4, 2), (5, 2), (6, 2), (7, 2)]


@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_invariant_2_consumed_age_is_at_most_max_staleness(staleness: int, every: int):
    slots = Slots(groups_per_step=3, max_staleness=staleness, checkpoint_every=every, steps=12)
    version_of: dict[int, int] = {}
    most = 0
    for step in range(12):
        version_of |= {slot.group_id: slot.version for slot in slots.acquire()}
        most = max(most, len(version_of) - 3 * step)
        ages = {step - version_of[group] for group in slots.groups(step)}
        assert max(ages) <= staleness
        assert len(ages) == 1
        slots.publish(step + 1)
    assert len(version_of) == 36
    assert most <= (staleness + 1) * 3


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("stopped", range(1, 12))
def test_slots_resumed_between_two_checkpoints_draw_by_the_straight_run_s_versions(
    staleness: int, stopped: int
):
    settings = {"groups_per_step": 1, "max_staleness": staleness, "checkpoint_every": 4}
    straight, resumed = {}, {}
    slots = Slots(**settings, steps=12)
    for step in range(12):
        straight |= dict(drawn(slots))
        slots.publish(step + 1)
    oldest = slots.drawn_by(stopped)
    slots = Slots(**settings, steps=12, version=stopped, oldest=oldest)
    for step in range(stopped, 12):
        resumed |= dict(drawn(slots))
        slots.publish(step + 1)
    assert resumed == {group: v for group, v in straight.items() if group >= stopped}


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_resumed_slots_continue_as_if_the_run_had_not_stopped(staleness: int):
    def versions(start: int, stop: int) -> dict[int, int]:
        slots = Slots(
            groups_per_step=2,
            max_staleness=staleness,
            checkpoint_every=4,
            steps=stop,
            version=start,
        )
        found: dict[int, int] = {}
        for step in range(start, stop):
            found |= dict(drawn(slots))
            slots.publish(step + 1)
        return found

    straight = versions(0, 12)
    resumed = versions(8, 12)
    assert resumed == {group: v for group, v in straight.items() if group >= 16}


def test_weights_that_are_not_there_draw_nothing():
    """A run that is resumed with other settings than it was stopped under."""
    slots = Slots(groups_per_step=1, max_staleness=3, checkpoint_every=9, steps=8, version=5)
    assert drawn(slots) == [(5, 5), (6, 5), (7, 5)]
    assert slots.drawn_by(6) == 5
