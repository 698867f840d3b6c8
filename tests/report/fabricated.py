"""Runs on disk, by the writers that a training has: their numbers follow given lines."""

from pathlib import Path
from typing import Any

import numpy as np

from percent_ray.monitor import history, probes
from percent_ray.monitor.history import History
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE

STEPS, EVERY = 20, 4
PRICE = 2.0
"""a of the law that probes follow."""
H = 0.4
PROMPTS = ("a <red> circle", "a blue square")


def run(
    folder: Path,
    name: str = "small",
    *,
    steps: int = STEPS,
    probed: bool = True,
    lost: float = 3.0,
    side: int = 32,
    reward: str = "pickscore",
    **recipe: Any,
) -> Path:
    """A run of `STEPS` steps as far as `steps`; its reward rises, and its Vendi in the space of
    "eyes" goes from 9 to 9 - `lost`."""
    path = folder / name
    write_recipe(path, name, probed=probed, reward=reward, **recipe)
    journal = History(path / history.FILE)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(PROMPTS), 10, 3, side, side), dtype=np.uint8)
    for step in range(steps + 1):
        if probed and step % EVERY == 0:
            shown = np.clip(images.astype(int) + 3 * step, 0, 255).astype(np.uint8)
            probes.write(path, step, list(zip(PROMPTS, shown, strict=True)))
            journal.append(step, {f"probe/{k}": v for k, v in numbers(step, lost, reward).items()})
        if step < steps:
            extra = {"advantage/p_max": 0.2, "advantage/p_min": 0.01, "ratio/clip_low": 0.1}
            journal.append(step, {**numbers(step + 0.5, lost, reward), **extra})
    journal.close()
    return path


def numbers(step: float, lost: float, reward: str) -> dict[str, float]:
    done = step / STEPS
    entropy = H + 0.05 * done
    found = {
        "reward/mean": 4.0 - PRICE * float(np.exp(-entropy)),
        "reward/std_in_group": 0.1 - 0.05 * done,
        "entropy/policy": 0.84,
        "entropy/policy_schedule": 0.84,
        f"entropy/perceptual_{reward}": entropy,
        "diversity/vendi_eyes": 9.0 - lost * done,
        "movement/shared": done / 2,
    }
    for space in ("latent", "pixel", "eyes", reward):
        found[f"diversity/variance_{space}"] = 2.0 - done
    return found


def write_recipe(path: Path, name: str, *, probed: bool, reward: str, **layer: Any) -> None:
    """As `run.train` writes it; the model is one that no machine of ours has."""
    tree = {
        "run": {"name": name, "steps": STEPS},
        "model": {"path": "some/model", "resolution": 1024},
        "scorers": {"pickscore": None, reward: {"kind": "pickscore", "weight": 1.0}},
        "perceptual": {"spaces": [reward]},
        "monitor": {"spaces": [reward], "probe_every": EVERY if probed else 0},
        **layer,
    }
    path.mkdir(parents=True)
    (path / RECIPE_FILE).write_text(recipes.dump(recipes.load(None, layers=[tree])))
