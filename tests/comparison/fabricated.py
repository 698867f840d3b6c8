"""A finished comparison on disk: rows whose reward and diversity follow given lines."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from percent_ray.comparison import plan as plans
from percent_ray.comparison import results
from percent_ray.comparison.plan import BASE, Plan
from percent_ray.comparison.stored import MEASURED, PICTURES, RESULT
from percent_ray.data.prompts import read_prompts
from percent_ray.monitor.history import History
from percent_ray.recipe import load as recipes
from percent_ray.recipe.command_line import RECIPE_FILE

BASE_REWARD, BASE_VENDI = 0.2, 8.0
ROWS: dict[str, dict[str, Any]] = {
    "flow_grpo": {"label": "Flow-GRPO", "kind": "reference"},
    "slow": {"label": "Flow-GRPO, slow", "kind": "reference", "recipe": {"learner": {"lr": 1e-5}}},
    "pec": {"label": "PEC", "recipe": {"method": {"name": "pec"}}},
    "ours": {
        "label": "marginal",
        "kind": "ours",
        "recipe": {"method": {"name": "marginal_pec", "image_spaces": ["pickscore"]}},
    },
}
GENEVAL_ROW = {"label": "Flow-GRPO on GenEval", "kind": "reference", "table": "s1"}
LINES = {
    "geneval": (0.002, 2.0),
    "flow_grpo": (0.010, 4.0),
    "slow": (0.004, 1.0),
    "pec": (0.010, 3.0),
    "ours": (0.0095, 0.5),
}
"""Reward gained and Vendi lost over the run."""


def build(folder: Path) -> Path:
    """A comparison's file with its base recipe; nothing has been run."""
    records = [
        {
            "prompt": f"a {color} {shape}",
            "tag": "single_object",
            "include": [{"class": shape, "count": 1}],
        }
        for color, shape in (("red", "circle"), ("blue", "square"))
    ]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    recipe = {
        "run": {"steps": 20, "checkpoint_every": 5},
        "sampling": {"group_size": 4, "batch_size": 4},
        "scorers": {"clip": {}, "dino": {}, "geneval": {}},
        "learner": {"micro_batch": 2},
        "data": {"prompts": "prompts.jsonl", "groups_per_step": 2},
        "monitor": {"spaces": ["dino"]},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe))
    comparison = {
        "base": "base.yaml",
        "name": "compare",
        "folder": str(folder / "out"),
        "seeds": [1, 2],
        "evaluation": {
            "prompts": str(folder / "prompts.jsonl"),
            "images": 4,
            "judges": ["pickscore", "clip", "geneval"],
        },
        "rows": {**ROWS, "geneval": GENEVAL_ROW},
        "quick": ["flow_grpo", "pec"],
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(comparison, sort_keys=False))
    return path


UNITS = {"pickscore": "cosine", "clip": "cosine"}


def numbers(reward: float, vendi: float) -> dict[str, float]:
    spaces = ("clip", "dino", "pickscore", "vae")
    metrics = {"quality/pickscore": reward, "quality/clip": reward / 2}
    metrics |= {"quality/geneval": 2 * reward, "geneval/counting": 3 * reward}
    metrics |= {f"vendi/{space}": vendi for space in (*spaces, "vae_centred")}
    return metrics | {f"variance/{space}": vendi / 10 for space in spaces}


def finish(plan: Plan) -> None:
    """Write what the runs would have left behind."""
    comparison = plan.comparison
    protocol = results.under(comparison.evaluation)
    first = plan.recipe(next(iter(comparison.rows)), comparison.seeds[0])
    of = results.judged_by(first, comparison.evaluation)
    count = len(read_prompts(comparison.evaluation.prompts))

    def write(folder: Path, versions: dict[int, dict[str, float]], **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        result = {"protocol": protocol, "measured": MEASURED, "versions": versions, **settings}
        (folder / RESULT).write_text(json.dumps(result))
        np.savez(folder / PICTURES, images=np.zeros((count, 4, 3, 8, 8), np.uint8))

    runs = comparison.runs
    # Drawn anew, the base's pictures are a little worse; choosing costs 1 of their 6 of Vendi.
    strengths = [numbers(BASE_REWARD - 0.001 + 0.01 * s, 6.0 - 1.0 * s) for s in (0, 0.5, 1)]
    choice = {"pool": 0, "strengths": strengths, "units": UNITS}
    write(runs / BASE, {0: numbers(BASE_REWARD, BASE_VENDI)}, **choice, **of)
    for row in comparison.rows:
        gained, lost = LINES[row]
        for seed in comparison.seeds:
            folder = runs / f"{row}-{seed}"
            shift = 0.02 * seed
            at = {
                v: numbers(BASE_REWARD + gained * v / 20, BASE_VENDI - (lost + shift) * v / 20)
                for v in (5, 10, 15, 20)
            }
            write(folder, at)
            (folder / RECIPE_FILE).write_text(recipes.dump(plan.recipe(row, seed)))
            history = History(folder / "metrics.jsonl")
            for step in range(21):
                history.append(step, probe(step, gained * step / 20))
            history.close()


def probe(step: int, gain: float) -> dict[str, float]:
    metrics = {
        "entropy/policy": 0.84 + 0.01 * math.sin(step),
        "entropy/policy_schedule": 0.84,
        "advantage/p_max": 0.2,
        "advantage/p_min": 0.01,
        "time/step_s": 30.0,
        "throughput/images_per_s": 0.5,
        "probe/reward/mean": BASE_REWARD + gain,
        "probe/reward/std_in_group": 0.05,
    }
    for space in ("latent", "pixel", "clip", "dino", "pickscore"):
        metrics[f"probe/diversity/variance_{space}"] = 2.0 - step / 20
        metrics[f"probe/diversity/vendi_{space}"] = 4.0 - step / 20
        metrics[f"probe/entropy/perceptual_{space}"] = 0.8 - gain
    return metrics


def load(folder: Path, overrides: Sequence[str] = (), **options: Any) -> Plan:
    return plans.load(build(folder), overrides, **options)
