import asyncio
import gc
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from percent_ray.runtime.local import Local, Thread


def test_calls_are_made_one_after_the_other_and_leave_the_event_loop_free():
    thread, made, ticks = Thread(5.0), [], []

    def work(number: int) -> int:
        time.sleep(0.05)
        made.append(number)
        return number

    async def tick() -> None:
        while len(made) < 3:
            ticks.append(len(made))
            await asyncio.sleep(0.005)

    async def main() -> list[int]:
        calls = [thread.call("work", lambda i=i: work(i)) for i in range(3)]
        return (await asyncio.gather(*calls, tick()))[:3]

    assert asyncio.run(main()) == made == [0, 1, 2]
    assert len(ticks) > 6


def test_a_call_that_hangs_is_given_up_and_says_what_to_set():
    """Its time begins with its turn."""
    thread, hung = Thread(0.2), threading.Event()
    slow = [thread.call("work", lambda: time.sleep(0.12)) for _ in range(3)]

    async def main() -> None:
        await asyncio.gather(*slow)
        await thread.call("perceiving group 7", hung.wait)

    message = r"^perceiving group 7 was not over in 0\.2 s; set runtime\.timeout_s higher"
    with pytest.raises(TimeoutError, match=message):
        asyncio.run(main())
    hung.set()
    hung.clear()
    with pytest.raises(TimeoutError, match="loading was not over"):
        asyncio.run(thread.call("loading", hung.wait))
    assert all(t.daemon for t in threading.enumerate() if t.name == "roles"), "no process waits"
    hung.set()


@pytest.mark.parametrize("error", [ValueError("bad folder"), TimeoutError("the judge is asleep")])
def test_what_a_call_raises_is_raised_as_it_is(error):
    def work() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        asyncio.run(Thread(5.0).call("work", work))


def test_a_call_that_nobody_waits_for_any_more_is_not_made():
    thread, go, made = Thread(5.0), threading.Event(), []

    async def main() -> None:
        first = asyncio.create_task(thread.call("first", go.wait))
        second = asyncio.create_task(thread.call("second", lambda: made.append(2)))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0)
        go.set()
        await first
        await thread.call("third", lambda: made.append(3))

    asyncio.run(main())
    assert made == [3]


def test_the_thread_ends_with_its_owner_and_adds_as_torch_was_told_to():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = Thread(5.0)
    own = asyncio.run(thread.call("who", threading.current_thread))
    assert own is not threading.current_thread()
    assert asyncio.run(thread.call("count", torch.get_num_threads)) == 1
    torch.set_num_threads(threads)
    del thread
    gc.collect()
    own.join(5)
    assert not own.is_alive()


def test_a_run_can_be_stopped_while_its_models_load(monkeypatch):
    """The event loop, and with it a signal, does not wait for them."""
    loading, go = threading.Event(), threading.Event()

    def load(self, first, resume) -> None:
        loading.set()
        go.wait()

    monkeypatch.setattr(Local, "_load", load)
    recipe = SimpleNamespace(runtime=SimpleNamespace(timeout_s=5.0))

    async def main() -> None:
        start = asyncio.create_task(Local.start(recipe, first=SimpleNamespace()))
        await asyncio.to_thread(loading.wait)
        asyncio.get_running_loop().call_later(0.05, go.set)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    asyncio.run(asyncio.wait_for(main(), 5))
    assert go.is_set(), "and the thread is not left alone in a call"


def test_the_roles_of_one_process_hold_the_time_limit():
    local, hung = Local.__new__(Local), threading.Event()
    local._thread = Thread(0.1)
    local.perception = SimpleNamespace(perceive=lambda group, pictures: hung.wait())
    with pytest.raises(TimeoutError, match=r"^perceiving group 7 was not over in 0\.1 s; set"):
        asyncio.run(local.perceive(SimpleNamespace(group_id=7), pictures=False))
    hung.set()
