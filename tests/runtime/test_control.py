"""What is asked of a live run, and what is refused."""

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from percent_ray.recipe import load as recipes
from percent_ray.runtime import control
from percent_ray.runtime.control import Control, Scaled, Size, State
from percent_ray.runtime.room import GIB, Room
from tests.end_to_end import world as worlds

CARD = {"CPU": 1.0, "GPU": 1.0}
STATE = State(12, {"rollout": Size(4, 4, CARD), "perception": Size(1, 1, {"CPU": 2.0})})


def test_an_order_is_answered_when_the_driver_has_taken_it(monkeypatch):
    monkeypatch.setattr(control, "POLL_S", 0.01)

    async def scene() -> None:
        actor = Control(State())
        assert await actor.next(0, State(1)) is None, "nobody has asked"
        asked = [asyncio.create_task(actor.ask({"rollout": n})) for n in (8, 2)]
        await asyncio.sleep(0)
        assert await actor.next(0, State(2)) == {"rollout": 8}
        assert await actor.next(1, State(3)) == {"rollout": 2}
        await asyncio.sleep(0.001)
        assert (asked[0].done(), asked[1].done()) == (True, False)
        assert asked[0].result() == State(3), "as the driver was when it had obeyed"
        assert await actor.next(2, State(4)) is None
        assert await asked[1] == State(4)
        assert await actor.state() == State(4)

    asyncio.run(asyncio.wait_for(scene(), 10))


@pytest.mark.parametrize(
    ("sizes", "machines", "left"),
    [
        ({}, [{"CPU": 4.0}], {"rollout": 0, "perception": 2}),
        ({"rollout": 6}, [{"CPU": 4.0, "GPU": 2.0}], {"rollout": 0, "perception": 1}),
        ({"rollout": 2}, [{"CPU": 1.0}], {"rollout": 2, "perception": 1}),
        ({"rollout": 2, "perception": 2}, [{"CPU": 1.0}], {"rollout": 0, "perception": 0}),
    ],
)
def test_what_is_left_of_the_cluster(sizes, machines, left):
    from percent_ray.runtime import places

    free = control._left(STATE, sizes, [Room.of(machine) for machine in machines])
    assert {role: places.room(free, size.need) for role, size in STATE.sizes.items()} == left


def test_parts_of_cards_that_are_given_back_are_no_larger_together():
    """Two rollout workers of 0.6 go, and two perception workers of 0.6 come."""
    part = {"CPU": 1.0, "GPU": 0.6}
    state = State(1, {"rollout": Size(4, 4, part), "perception": Size(1, 1, part)})
    left = control._left(state, {"rollout": 2, "perception": 3}, [Room.of({"CPU": 4.0})])
    assert sorted(round(card, 6) for room in left for card in room.cards) == [0.0, 0.0]


def test_a_part_of_a_card_lies_on_one_card():
    """2 cards and 0.6 of one for each worker: 2 find a place, though 2 / 0.6 is 3.3."""
    from percent_ray.runtime import places

    two = [Room.of({"CPU": 8.0, "GPU": 2.0})]
    assert places.room(two, {"CPU": 1.0, "GPU": 0.6}) == 2
    assert places.room(two, {"GPU": 0.5}) == 4
    assert places.room(two, {"CPU": 1.0, "GPU": 2.0}) == 1
    assert places.room(two, {"CPU": 3.0}) == 2, "asking takes nothing"
    assert places.room([Room.of({"CPU": 1.0, "memory": 3 * GIB})] * 2, {"memory": 2 * GIB}) == 2


@pytest.mark.parametrize(
    ("sizes", "machines", "message"),
    [
        (
            {"rollout": 8},
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 0.0, "GPU": 2.0}],
            "--rollout 8: 4 more workers of 1 CPU, 1 GPU asked, the cluster has room for 1; set 5 "
            "or less, or add machines",
        ),
        (
            {"perception": 3},
            [{"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 1.0}],
            "--perception 3: 2 more workers of 2 CPU asked, the cluster has room for 1; set 2 or "
            "less, or add machines",
        ),
        (
            {"rollout": 5, "perception": 2},
            [{"CPU": 2.0, "GPU": 1.0}],
            "--perception 2: 1 more workers of 2 CPU asked, the cluster has room for 0; set 1 or "
            "less, or add machines",
        ),
        ({"learner": 2}, [], "learner: no such pool; a run has rollout, perception"),
    ],
)
def test_more_than_the_cluster_has_is_refused(sizes, machines, message):
    with pytest.raises(ValueError, match=r"no such pool|room") as caught:
        control._left(STATE, sizes, [Room.of(machine) for machine in machines])
    assert str(caught.value) == message


def test_what_was_done_in_words():
    after = State(12, {"rollout": Size(4, 8, CARD), "perception": Size(1, 1, {"memory": GIB})})
    words = str(Scaled("runs/x", STATE, after, {"rollout": 3, "perception": 9}))
    assert words.splitlines() == [
        "runs/x, step 12",
        "rollout: 4 -> 8 workers (4 at work now); the cluster can give 3 more of 1 CPU, 1 GPU",
        "perception: 1 workers; the cluster can give 9 more of 1 GiB",
    ]


@pytest.fixture
def run(world, tmp_path) -> Path:
    """Folder of a run that has been."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipes.dump(worlds.recipe(world, tmp_path)))
    return folder


def test_a_run_that_is_none_or_dead_is_one_line(run, monkeypatch):
    """At once, and without a cluster of this process."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ValueError, match=r"^no run nowhere: no recipe\.yaml in nowhere nor in runs"
    ):
        control.scale("nowhere", {"rollout": 2})
    with pytest.raises(ValueError, match=r"^--rollout 0: a run needs at least one worker of each"):
        control.scale(str(run), {"rollout": 0})
    with pytest.raises(ValueError, match=r"^--perception -1: a run needs at least one"):
        control.scale(str(run), {"rollout": 2, "perception": -1})
    dead = rf"^{run}: the run is not alive; --resume goes on with it$"
    with pytest.raises(ValueError, match=dead):
        control.scale(str(run), {"rollout": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for text in (json.dumps({"address": address, "environment": {}}), "{", "[]"):
        (run / control.FILE).write_text(text)
        with pytest.raises(ValueError, match=dead):
            control.scale(str(run), {})
    assert "RAY_ADDRESS" not in os.environ


def test_a_run_of_one_process_is_one_line(world, run, tmp_path):
    local = worlds.recipe(world, tmp_path, backend="local")
    (run / "recipe.yaml").write_text(recipes.dump(local))
    with pytest.raises(ValueError, match=r"of runtime\.backend local has one worker of each role"):
        control.scale(str(run), {"rollout": 2})
