import os

# One thread a process: the sums of a test must not depend on the machine's cores, and the workers
# that tests start would otherwise fight over them.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
# A shell starts what it puts into the background deaf to Ctrl-C, and the jobs that tests start and
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that both workers of `make test` end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random tiny models of tests/end_to_end/world.py."""
    from tests.end_to_end import world as worlds

    return worlds.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Of a module: while it is open no test can start an event loop."""
    from tests import browser

    if browser.CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with browser.chromium() as context:
        yield context
