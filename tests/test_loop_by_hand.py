"""The readable reference equals the runtime, number by number."""

import asyncio
from pathlib import Path

import pytest

from jobs import loop_by_hand
from percent_ray.recipe import load as recipes
from percent_ray.runtime.local import Local
from tests.end_to_end import world as worlds

RECIPE = Path(__file__).parents[1] / "jobs" / "recipes" / "shapes_pec.yaml"
STEPS = 2


@pytest.mark.slow
def test_the_loop_by_hand_gives_the_runtimes_numbers(capsys):
    settings = (
        *("--runtime.backend", "local", "--runtime.max_staleness", "0"),
        *("--monitor.probe_every", "0", "--run.steps", str(STEPS)),
    )
    recipe = recipes.load(RECIPE, settings)
    roles = asyncio.run(Local.start(recipe, first=worlds.first(recipe)))
    expected = worlds.numbers(asyncio.run(worlds.train(recipe, roles)))
    ours = loop_by_hand.main(STEPS)
    assert len(ours) == len(expected) == STEPS
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine == {name: pytest.approx(theirs[name], rel=1e-5) for name in mine}
    assert ours[0]["entropy/policy"] != ours[1]["entropy/policy"], "measured"
    printed = capsys.readouterr().out
    for name in ("entropy/policy", "entropy/perceptual_pickscore", "diversity/vendi_dino"):
        assert f"{name} {ours[1][name]:.4f}" in printed
