"""A run whose pools grow and shrink twice while it goes on, by the job that a user has for it."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from percent_ray import run as runs
from percent_ray.monitor import history
from percent_ray.recipe.tree import Recipe
from percent_ray.runtime import places, scaling
from percent_ray.runtime.cluster import Cluster
from tests.end_to_end import world as worlds

ROOT = Path(__file__).parents[2]
SIZES = {1: (3, 2), 3: (1, 1), 4: (2, 2), 6: (1, 1)}
"""Workers of rollout and perception, asked for in the update of a step."""

pytestmark = [pytest.mark.ray, pytest.mark.study]


def recipe(world: Path, folder: Path, name: str) -> Recipe:
    fields = worlds.recipe(world, folder).model_dump()
    fields["run"] |= {"steps": 8, "name": name, "checkpoint_every": 3}
    fields["data"] |= {"groups_per_step": 4}
    return Recipe.model_validate(fields)


def metrics(run: Path) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in values.items() if not name.startswith(worlds.CLOCKS)}
        for step, values in history.read(run / "metrics.jsonl").items()
    }


def scale(run: Path, rollout: int, perception: int) -> str:
    """What the job prints, in a process of its own that knows the folder alone."""
    command = [sys.executable, ROOT / "jobs" / "scale.py", run]
    asked = ["--rollout", str(rollout), "--perception", str(perception)]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


async def settled(cluster: Cluster) -> None:
    """Everybody has loaded who is to, and nobody is left who is to leave."""
    while any(len(p._workers) != p.wanted or p.loading for p in cluster._pools.values()):
        await asyncio.sleep(0.05)


def test_invariant_11_a_run_that_is_scaled_twice_has_the_straight_runs_numbers(
    world, tmp_path, ray_cluster, capsys, monkeypatch
):
    straight = runs.train(recipe(world, tmp_path, "straight"))
    update, printed, folder = Cluster.update, [], tmp_path / "scaled"

    async def scaled(cluster, batch):
        if sizes := SIZES.get(batch.version):
            printed.append(await asyncio.to_thread(scale, folder, *sizes))
        if batch.version != 4:  # whose new workers join while groups are sampled
            await settled(cluster)
        return await update(cluster, batch)

    monkeypatch.setattr(Cluster, "update", scaled)
    run = runs.train(recipe(world, tmp_path, "scaled"))
    assert run == folder
    ours, theirs = metrics(run), metrics(straight)
    assert len(theirs) == 9
    assert ours == theirs
    changes = [re.findall(r"(\w+): (\d+)(?: -> (\d+))? workers", text) for text in printed]
    assert changes == [
        [("rollout", "1", "3"), ("perception", "1", "2")],
        [("rollout", "3", "1"), ("perception", "2", "1")],
        [("rollout", "1", "2"), ("perception", "1", "2")],
        [("rollout", "2", "1"), ("perception", "2", "1")],
    ]
    assert "the cluster can give 3 more of 0.3 CPU" in printed[1]
    out = capsys.readouterr().out
    assert "rollout: 1 -> 3 workers, as asked" in out
    assert re.search(r"rollout worker [12] joins: 3 of them", out)
    spans = [json.loads(line) for line in (run / "spans.jsonl").read_text().splitlines()]
    assert {"rollout-0", "rollout-1", "rollout-2"} <= {span["worker"] for span in spans}
    sampled = [span["group_id"] for span in spans if span["stage"] == "sample"]
    assert sorted(sampled) == list(range(32)), "none is lost, none is doubled"
    assert "the run is not alive; --resume goes on with it" in scale(run, 2, 1)


def test_a_run_that_scales_itself_has_the_straight_runs_numbers(
    world, tmp_path, ray_cluster, capsys, monkeypatch
):
    """And its decision, its reason and what it asked of Ray's autoscaler can be seen."""
    monkeypatch.setattr(scaling, "GROWS", 1)
    monkeypatch.setattr(scaling, "FULL", 0.1)
    straight = runs.train(recipe(world, tmp_path, "straight"))
    fields = recipe(world, tmp_path, "itself").model_dump()
    fields["runtime"]["rollout"] |= {"max_workers": 3}
    requested, request = [], places.request_resources
    monkeypatch.setattr(
        places,
        "request_resources",
        lambda bundles: requested.append(bundles) or request(bundles=bundles),
    )
    run = runs.train(Recipe.model_validate(fields))
    assert metrics(run) == metrics(straight)
    pool = [
        {name: value for name, value in values.items() if name.startswith("pool/")}
        for values in history.read(run / "metrics.jsonl").values()
    ]
    grown = next(values for values in pool if values.get("pool/rollout_reason") == 1)
    assert grown["pool/rollout_wanted"] > grown["pool/rollout_workers"] == 1
    assert grown["pool/learner_waited"] > scaling.WAITS
    assert re.search(
        r"rollout: 1 -> [23] workers: the learner waits \d+% of a step", capsys.readouterr().out
    )
    assert len(requested[0]) >= 4, "learner, perception and two or three that sample"
    assert requested[-1] == [], "given back"
