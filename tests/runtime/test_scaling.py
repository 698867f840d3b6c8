"""When a pool grows and when it shrinks."""

from dataclasses import dataclass, field

import pytest

from percent_ray.runtime.scaling import GROWS, SHRINKS, Reason, Scaler, Seen, Watched, decide

WAITING = Seen(waited=0.5, busy=0.95, busy_waiting=1.0)
IDLING = Seen(waited=0.0, busy=0.3, busy_waiting=0.0)
FINE = Seen(waited=0.03, busy=0.9, busy_waiting=1.0)


@pytest.mark.parametrize(
    ("seen", "workers", "room", "size", "reason"),
    [
        ([WAITING] * GROWS, 4, 99, 8, Reason.LEARNER_WAITS),
        ([WAITING] * (GROWS - 1), 4, 99, 4, Reason.FITS),
        ([WAITING, FINE, WAITING, WAITING], 4, 99, 4, Reason.FITS),
        ([Seen(0.2, 0.95, 1.0)] * GROWS, 4, 99, 5, Reason.LEARNER_WAITS),
        ([Seen(0.1, 0.95, 1.0)] * GROWS, 4, 99, 5, Reason.LEARNER_WAITS),
        ([Seen(0.9, 0.95, 1.0)] * GROWS, 4, 99, 8, Reason.LEARNER_WAITS),
        ([WAITING] * GROWS, 12, 99, 16, Reason.LEARNER_WAITS),
        ([WAITING] * GROWS, 16, 99, 16, Reason.MOST),
        ([WAITING] * GROWS, 4, 2, 6, Reason.LEARNER_WAITS),
        ([WAITING] * GROWS, 4, 0, 4, Reason.NO_ROOM),
        # The learner waits for others: this pool has little to do meanwhile.
        ([Seen(0.5, 0.7, 0.5)] * GROWS, 4, 99, 4, Reason.FITS),
        ([IDLING] * SHRINKS, 8, 99, 4, Reason.WORKERS_IDLE),
        ([IDLING] * SHRINKS, 16, 99, 6, Reason.WORKERS_IDLE),
        ([IDLING] * (SHRINKS - 1), 8, 99, 8, Reason.FITS),
        ([IDLING] * (SHRINKS - 1) + [FINE], 8, 99, 8, Reason.FITS),
        ([IDLING] * SHRINKS, 4, 99, 4, Reason.FITS),
        # Synchronous: all idle while the learner works, all are busy while it waits.
        ([Seen(0.4, 0.4, 1.0)] * SHRINKS, 16, 99, 16, Reason.MOST),
        ([Seen(0.4, 0.4, 0.7)] * SHRINKS, 8, 99, 8, Reason.FITS),
        # More workers than groups: half of them have none also while the learner waits.
        ([Seen(0.4, 0.2, 0.4)] * SHRINKS, 16, 99, 8, Reason.WORKERS_IDLE),
        ([], 4, 99, 4, Reason.FITS),
    ],
)
def test_a_pool_grows_while_the_learner_waits_and_shrinks_where_it_idles(
    seen, workers, room, size, reason
):
    decision = decide(seen, workers, least=4, most=16, room=room)
    assert (decision.workers, decision.reason) == (size, reason)


@dataclass
class FakePool:
    workers: int
    wanted: int = 0
    loading: int = 0
    busy: float = 0.0
    resized: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted = self.workers

    def busy_s(self) -> float:
        return self.busy

    def resize(self, workers: int) -> None:
        self.resized.append(workers)
        self.wanted = workers


class Scene:
    """Steps of 10 seconds, of which the learner waits the first ones."""

    def __init__(self, workers: int, room: int = 99) -> None:
        self.now = 0.0
        self.pool = FakePool(workers)
        self.asked, self.said = [], []
        self.scaler = Scaler(
            {"rollout": Watched(self.pool, 2, 8, {"CPU": 1.0})},
            room=lambda need: room,
            ask=self.asked.append,
            say=self.said.append,
            clock=lambda: self.now,
        )
        self.scaler.ended()

    def step(self, *, wait: float, busy: float, away: float = 0.0) -> dict[str, float]:
        """`busy` is the share of workers that have a group, throughout."""
        for seconds, then in (
            (wait + away, self.scaler.began),
            (10 - wait - away, self.scaler.ended),
        ):
            self.now += seconds
            self.pool.busy += seconds * busy * self.pool.workers
            self.scaler.away(away if then == self.scaler.began else 0)
            found = then()
        return found


def test_what_is_decided_and_why_is_in_the_metrics_and_said():
    scene = Scene(4, room=3)
    for _ in range(GROWS - 1):
        metrics = scene.step(wait=5, busy=1.0)
        assert metrics["pool/rollout_wanted"] == 4
    assert scene.step(wait=5, busy=1.0) == {
        "pool/learner_waited": 0.5,
        "pool/rollout_workers": 4,
        "pool/rollout_wanted": 7,
        "pool/rollout_reason": Reason.LEARNER_WAITS,
        "pool/rollout_busy": 1.0,
    }
    assert scene.pool.resized == [7]
    assert scene.asked == [{"rollout": 8}], "of the autoscaler all that would help"
    assert scene.said == ["rollout: 4 -> 7 workers: the learner waits 50% of a step for groups"]


def test_no_step_counts_in_which_the_workers_change():
    scene = Scene(2)
    for _ in range(GROWS):
        scene.step(wait=5, busy=1.0)
    assert scene.pool.resized == [4]
    scene.pool.loading = 2
    for _ in range(GROWS):
        assert "pool/rollout_busy" not in scene.step(wait=5, busy=1.0)
    scene.pool.loading, scene.pool.workers = 0, 4
    for _ in range(GROWS):
        scene.step(wait=5, busy=1.0)
    assert scene.pool.resized == [4], "in the first of these steps they have joined"
    scene.step(wait=5, busy=1.0)
    assert scene.pool.resized == [4, 8]


def test_a_learner_that_saves_does_not_wait():
    scene = Scene(4)
    for _ in range(GROWS + 1):
        metrics = scene.step(wait=0.1, busy=1.0, away=5)
    assert metrics["pool/learner_waited"] == pytest.approx(0.01)
    assert scene.pool.resized == []


def test_sizes_come_to_rest():
    """Work for 3.2 workers throughout, begun with 8 of them, then with 2."""
    for workers in (8, 2):
        scene, sizes = Scene(workers), []
        for _ in range(40):
            there = scene.pool.workers
            wait = 10 * max(0.0, 1 - there / 3.2)
            scene.step(wait=wait, busy=min(1.0, 3.2 / there))
            scene.pool.workers = scene.pool.wanted
            sizes.append(scene.pool.workers)
        assert sizes[-1] == 4
        assert len(set(sizes[20:])) == 1


def test_a_size_that_is_set_by_hand_holds():
    scene = Scene(4)
    scene.scaler.by_hand("rollout")
    for _ in range(GROWS):
        assert scene.step(wait=5, busy=1.0) == {"pool/learner_waited": 0.5}
    assert scene.said == ["rollout: set by hand, and scales itself no more"]
    scene.scaler.by_hand("perception")
    assert len(scene.said) == 1
