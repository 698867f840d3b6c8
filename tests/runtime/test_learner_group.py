"""The mailbox: orders are carried out one by one, by every rank, also those nobody waits for."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import psutil
import pytest
import ray
from ray.exceptions import ObjectLostError

from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE
from percent_ray.runtime import learner_group
from percent_ray.runtime import mailbox as mailboxes
from percent_ray.runtime.learner_group import LearnerGroup
from percent_ray.runtime.mailbox import Mailbox, Order
from percent_ray.runtime.rank import fetch, train_worker
from percent_ray.types import ShapedRow
from tests.end_to_end import world as worlds
from tests.learn.fake import FakePolicy, draw_batch, fake_recipe


async def rank(mailbox: Mailbox, number: int, carried: list[tuple[int, str]]) -> None:
    """Carries out orders until `stop`, as a worker of the group does."""
    count = 0
    while True:
        order = await mailbox.next(count)
        if order is None:
            continue
        carried.append((number, order.kind))
        await mailbox.answer(count, number, (None, f"rank {number}, order {count}", None))
        if order.kind == "stop":
            return
        count += 1


def test_every_rank_carries_out_every_order_and_rank_0_answers():
    async def scene() -> None:
        mailbox, carried = Mailbox(2), []
        ranks = [asyncio.create_task(rank(mailbox, i, carried)) for i in range(2)]
        assert (await mailbox.order(0, Order("publish")))[1] == "rank 0, order 0"
        assert (await mailbox.order(1, Order("save")))[1] == "rank 0, order 1"
        await mailbox.order(2, Order("stop"))
        await asyncio.gather(*ranks)
        assert sorted(carried) == [
            (i, kind) for i in range(2) for kind in ("publish", "save", "stop")
        ]

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_an_order_that_nobody_waits_for_is_not_overwritten():
    """The driver gave up on order 0 before any rank had fetched it, then said stop."""

    async def scene() -> None:
        mailbox, carried = Mailbox(2), []
        given_up = asyncio.create_task(mailbox.order(0, Order("update")))
        await asyncio.sleep(0)
        stop = asyncio.create_task(mailbox.order(1, Order("stop")))
        await asyncio.sleep(0)
        await asyncio.gather(*(rank(mailbox, i, carried) for i in range(2)))
        await stop
        assert sorted(carried) == [(i, kind) for i in range(2) for kind in ("stop", "update")]
        assert (await given_up)[1] == "rank 0, order 0"

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_rank_that_is_behind_is_told():
    async def scene() -> None:
        mailbox, carried = Mailbox(1), []
        task = asyncio.create_task(rank(mailbox, 0, carried))
        await mailbox.order(0, Order("publish"))
        await mailbox.order(1, Order("publish"))
        with pytest.raises(ValueError, match="order 0 is over, the group is at 1; this rank has"):
            await mailbox.next(0)
        await mailbox.order(2, Order("stop"))
        await task

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_waiting_for_an_order_takes_no_time_of_the_processor(monkeypatch):
    monkeypatch.setattr(mailboxes, "POLL_S", 0.2)
    mailbox, before = Mailbox(1), time.process_time()
    assert asyncio.run(mailbox.next(0)) is None
    assert time.process_time() - before < 0.1


@pytest.mark.ray
def test_a_rank_fetches_its_own_groups_alone(tmp_path, ray_cluster):
    """The tables of all others are of a task that fails: whoever asks for one has its error."""

    @ray.remote(num_cpus=0)
    def lost() -> None:
        raise ValueError("another rank's table was asked for")

    batch = draw_batch(FakePolicy(), fake_recipe(tmp_path))

    def rows(mine: Sequence[int]) -> tuple[ShapedRow, ...]:
        return tuple(
            replace(row, payload=ray.put(row.payload), condition=ray.put(row.condition))
            if number in mine
            else replace(row, payload=lost.remote(), condition=lost.remote())
            for number, row in enumerate(batch.rows)
        )

    mine = [1, 2]
    found, gone = fetch(replace(batch, rows=rows(mine)), mine)
    assert gone == []
    for number, (row, whole) in enumerate(zip(found.rows, batch.rows, strict=True)):
        assert row.weights.advantage.equal(whole.weights.advantage)
        expected = (whole.payload, whole.condition) if number in mine else (None, None)
        assert (row.payload, row.condition) == expected
    with pytest.raises(ValueError, match="another rank's table"):
        fetch(replace(batch, rows=rows(mine)), [0, 1])


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_gives_up_on_its_first_order_ends_at_once(world, tmp_path, ray_cluster):
    """As a test that runs into its time limit does: the order is cancelled while the ranks still
    load their models, then the group is closed. They must return, and not spin."""
    recipe = worlds.recipe(world, tmp_path)
    (tmp_path / RECIPE_FILE).write_text(recipes.dump(recipe))

    async def scene() -> None:
        group = LearnerGroup(recipe, run_folder=tmp_path, resume=None)
        group.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(group.order("publish"), 0.5)
        await group.close()

    asyncio.run(scene())
    deadline = time.monotonic() + learner_group.CLOSE_S
    while ranks() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not ranks(), "no rank is left that asks for orders"


def ranks() -> list[int]:
    """Of the cluster that these tests have started, and of no other on the machine."""
    ours = psutil.Process().children(recursive=True)
    return [p.pid for p in ours if p.is_running() and p.name().startswith("ray::RayTrain")]


def test_a_machine_that_does_not_see_the_run_s_folder_loads_nothing(tmp_path):
    config = {"run_folder": str(tmp_path / "run"), "recipe": None, "mailbox": None, "resume": ""}
    with pytest.raises(
        ValueError, match=r"does not see the run's folder .*/run; set run\.folder to a folder that"
    ):
        train_worker(config)


@pytest.mark.ray
def test_a_rank_names_the_groups_whose_tables_are_lost(tmp_path, ray_cluster):
    """Of one group the payload is gone, of another the condition."""

    @ray.remote(num_cpus=0)
    def lost_with_its_machine() -> None:
        raise ObjectLostError("00", None, "")

    batch = draw_batch(FakePolicy(), fake_recipe(tmp_path))
    rows = [
        replace(row, payload=ray.put(row.payload), condition=ray.put(row.condition))
        for row in batch.rows
    ]
    gone = lost_with_its_machine.remote()
    rows[0], rows[2] = replace(rows[0], payload=gone), replace(rows[2], condition=gone)
    found, lost = fetch(replace(batch, rows=tuple(rows)), [0, 1, 2])
    assert lost == [0, 2]
    assert found.rows[1].payload == batch.rows[1].payload
    assert fetch(replace(batch, rows=tuple(rows)), [1])[1] == []
