import asyncio
import re
import time
from itertools import product

import pytest
import ray
from ray.cluster_utils import Cluster

from percent_ray.recipe.tree import Recipe, Role, Runtime
from percent_ray.runtime import placement
from percent_ray.runtime.placement import Machine, check, lacking, options
from percent_ray.runtime.room import GIB


def machine(cpus=8.0, gpus=0.0, gib=64.0, *, name="one", free=None) -> Machine:
    has = {"CPU": cpus, "GPU": gpus, "memory": gib * GIB}
    return Machine(name, has, has if free is None else free)


def recipe(**roles: Role) -> Recipe:
    small = Role(cpus=1, gpus=0)
    return Recipe(
        runtime=Runtime(**{"rollout": small, "perception": small, "learner": small} | roles)
    )


@pytest.mark.parametrize(
    ("roles", "machines"),
    [
        (
            {"rollout": Role(workers=2, gpus=0.5), "learner": Role(gpus=1)},
            [machine(gpus=2)],
        ),
        ({"rollout": Role(workers=3, gpus=0.5)}, [machine(3, 1), machine(2, 1)]),
        ({"learner": Role(cpus=2)}, [machine(2), machine(2)]),  # the small ones share a machine
        (
            {"rollout": Role(gpus=1, cpus=1), "learner": Role(gpus=2, cpus=1)},
            [machine(2, 2), machine(2, 1)],
        ),
        ({"learner": Role(workers=2, memory_gb=40)}, [machine(), machine()]),
        ({name: Role(workers=50, cpus=0) for name in placement.ROLES}, [machine(0)]),
    ],
)
def test_what_fits_machine_by_machine_is_accepted(roles, machines):
    check(recipe(**roles), machines)


@pytest.mark.parametrize(
    ("roles", "machines", "message"),
    [
        (
            {"rollout": Role(cpus=2)},
            [machine(1), machine(1, name="two")],
            "runtime.rollout: 1 workers x 2 CPU asked, none of them finds a place, each on one "
            "machine of one with 1 CPU, two with 1 CPU; set runtime.rollout.cpus 1, or add "
            "machines",
        ),
        (
            {"rollout": Role(workers=3, gpus=1)},
            [machine(gpus=1), machine(gpus=1, name="two")],
            "runtime.rollout: 3 workers x 1 CPU and 1 GPU asked, 2 of them find a place, each on "
            "one machine of one with 8 CPU and 1 GPU, two with 8 CPU and 1 GPU; set "
            "runtime.rollout.workers 2, or add machines",
        ),
        (
            {"rollout": Role(workers=3, gpus=0.6)},
            [machine(gpus=2)],
            "runtime.rollout: 3 workers x 1 CPU and 0.6 GPU asked, 2 of them find a place, each on "
            "one machine of one with 8 CPU and 2 GPU; set runtime.rollout.workers 2, or add "
            "machines",
        ),
        (
            {"learner": Role(memory_gb=100)},
            [machine(), machine(gib=30, name="two")],
            "runtime.learner: 1 workers x 1 CPU and 100 GiB memory asked, none of them finds a "
            "place beside the roles before it, each on one machine of one with 8 CPU and 64 GiB "
            "memory, two with 8 CPU and 30 GiB memory; set runtime.learner.memory_gb 64, or add "
            "machines",
        ),
        (
            {"perception": Role(cpus=8)},
            [machine()],
            "runtime.perception: 1 workers x 8 CPU asked, none of them finds a place beside the "
            "roles before it, each on one machine of one with 8 CPU; set fewer workers of the "
            "other roles, or add machines",
        ),
    ],
)
def test_what_does_not_fit_names_role_machines_and_what_to_set(roles, machines, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(recipe(**roles), machines)


def test_a_value_that_is_told_finds_its_place():
    """Every mix of sizes on unlike machines: accepted, or accepted with what each line says."""
    park = [machine(4, 2, 16), machine(2, 1, 8), machine(16, 0, 64), machine(1, 0, 4)]
    refused = 0
    for workers, cpus, gpus, gib in product((1, 3, 9), (0.5, 2, 20), (0, 0.5, 1, 2, 4), (0, 9)):
        asked = Role(workers=workers, cpus=cpus, gpus=gpus, memory_gb=gib)
        for _ in range(5):
            line = lacking(recipe(rollout=asked), park, free=False)
            told = re.search(r"set runtime\.rollout\.(\w+) ([\d.]+),", line)
            if told is None:
                break
            asked = asked.model_copy(update={told[1]: float(told[2])})
            asked = asked.model_copy(update={"workers": int(asked.workers)})
            refused += 1
        assert not line or "fewer workers" in line, line
    assert refused > 20


def test_what_others_hold_is_not_free():
    park = [machine(4, free={"CPU": 1.0}), machine(4, name="two", free={"CPU": 1.5})]
    asked = recipe(learner=Role(cpus=2))
    check(asked, park)
    line = lacking(asked, park, free=True)
    assert line.startswith("runtime.learner: 1 workers x 2 CPU asked, none of them finds a place")
    assert "one with 1 of 4 CPU free, two with 1.5 of 4 CPU free; set fewer" in line


def test_an_empty_ray_address_is_none(monkeypatch):
    """As Ray has it: no cluster is joined, nor started, to count this machine."""
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr(placement.connection, "connect", lambda: pytest.fail("joined a cluster"))
    assert len(placement.machines()) == 1


def test_memory_is_reserved_only_where_asked():
    assert options(Role(cpus=2)) == {"num_cpus": 2, "num_gpus": 0}
    assert options(Role(memory_gb=3))["memory"] == 3 * GIB


@pytest.fixture(scope="module")
def two_machines():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_what_no_machine_has_is_refused_at_once_and_what_others_hold_after_a_while(
    two_machines, monkeypatch
):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^runtime\.rollout: 1 workers x 2 CPU asked, none.*"):
        asyncio.run(placement.wait(recipe(rollout=Role(cpus=2))))
    assert time.monotonic() - start < 5

    @ray.remote(num_cpus=1)
    class Holder:
        def held(self) -> None: ...

    shared = Role(cpus=0.6)
    asked = recipe(rollout=shared, perception=shared, learner=Role(cpus=0.1))
    asyncio.run(placement.wait(asked))
    holder = Holder.remote()
    ray.get(holder.held.remote())
    monkeypatch.setattr(placement, "WAIT_S", 1.5)
    with pytest.raises(
        ValueError, match=r"0 of 1 CPU free.*; others have held the rest for 1\.5 s"
    ):
        asyncio.run(placement.wait(asked))
    monkeypatch.setattr(placement, "WAIT_S", 60.0)
    said: list[str] = []

    async def released() -> None:
        waiting = asyncio.create_task(placement.wait(asked, say=said.append))
        while not said:
            await asyncio.sleep(0.1)
        assert not waiting.done()
        ray.kill(holder)
        await waiting

    asyncio.run(released())
    assert len(said) == 1
    assert "0 of 1 CPU free" in said[0]
    assert said[0].endswith("; waiting up to 60 s for those who hold the rest")
