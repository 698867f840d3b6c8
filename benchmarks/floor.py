"""The ratio's floor: how far from 1 rounding alone moves it, before any update.

    python benchmarks/floor.py                       the embedded world's model
    python benchmarks/floor.py --full sd3|flux       the real widths, a few blocks, random weights

One group is drawn by the rollout role and replayed by the learner's, by dtype, storage dtype,
guidance, and images of a draw / of a micro-batch; `replayed` has the old log-probs from the learner
itself (`objective.old_log_prob`). Prints a table of the largest |ratio - 1|, and in parentheses the
share of transitions outside a clip range of 1e-4. A run refuses to train above half of its clip.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor

from percent_ray.learn.batch import Images, micro_batches
from percent_ray.learn.engine import TorchEngine
from percent_ray.learn.process import DEVIATION, reduce
from percent_ray.learn.reference import Reference
from percent_ray.learn.replay import Replay
from percent_ray.models import published, trained
from percent_ray.models.base import best_device, family
from percent_ray.objective.grpo import Weights
from percent_ray.recipe import load, tree
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.types import Prompt, ShapedBatch, ShapedRow, Trajectory

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "jobs" / "recipes"
RECIPES = {"sd3": "sd35_medium_pickscore_pec.yaml", "flux": "flux_dev_pickscore_pec.yaml"}
"""By family: those of the published models."""
PROMPT = Prompt("a photo of a red circle")
Changes = Mapping[str, Any]


def read(recipe: str, overrides: Mapping[str, Any]) -> Recipe:
    """A shipped recipe with overrides."""
    given = [text for key, value in overrides.items() for text in (f"--{key}", str(value))]
    return load.load(SHIPPED / recipe, given)


def random_policy(recipe: Recipe, folder: Path, changes: Changes) -> Any:
    """The policy of a published pipeline (`models/published.py`) with `changes` to its
    transformer's config and random weights, on the best device, and with random text embeddings in
    the place of text encoders. Its configs are written to the empty `folder`, and read from it as
    long as it is used."""
    name, model, device = "transformer/config.json", recipe.model, best_device()
    files = published.PIPELINES[model.path]
    published.write({**files, name: {**files[name], **changes}}, folder)

    def network(model: tree.Model, transformer: str, device: torch.device) -> Any:
        kind = getattr(diffusers, transformer)
        torch.set_default_dtype(getattr(torch, model.dtype))
        try:
            with device:
                return kind.from_config({**files[name], **changes}).eval()
        finally:
            torch.set_default_dtype(torch.float32)

    torch.manual_seed(0)
    with patch.object(trained, "read", network):
        policy = family(model.family).load_policy(
            model.model_copy(update={"path": str(folder)}), seed=0, device=device, text=False
        )
    policy.encode = partial(random_text, policy)
    policy.describe = lambda: f"policy: {model.path}'s transformer, random weights"
    return policy


def random_text(policy: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Conditions of the real shapes."""
    made = partial(torch.randn, device=best_device(), dtype=policy.dtype)
    return {name: made(len(texts), *shape) for name, shape in policy.condition_shapes().items()}


def floor(recipe: Recipe, policy: Any, group: Trajectory) -> tuple[float, float]:
    """The largest |ratio - 1| of a group that `policy` has drawn, and the share outside the clip
    range."""
    engine = TorchEngine(recipe.learner, policy)
    replay = Replay(recipe, policy, Reference(policy, engine, recipe.objective))
    weights = Weights(torch.ones(group.payload.num_rows, len(group.steps)))
    batch = ShapedBatch(0, (ShapedRow(0, 0, group.payload, group.condition, weights),))
    images = Images(batch, replay.columns(batch))
    size = recipe.learner.micro_batch
    cut = list(micro_batches(range(len(images)), rank=0, world=1, size=size))
    tally = replay.tally(engine.device)
    taken = [images.take(numbers, engine.device, padding=padding) for numbers, padding in cut]
    replay.begin(iter(taken))
    for part in taken:
        for _ in replay.losses(part, tally):
            pass
    found = reduce([tally], engine)
    return found[DEVIATION], found["ratio/outside"]


def row(recipe: Recipe, policy: Any, batches: Sequence[tuple[int, int]]) -> str:
    """Cells of a table: of each pair of a draw and a micro-batch, and the last one replayed."""
    cells: list[str] = []
    groups: dict[int, Trajectory] = {}
    for number, (draw, micro) in enumerate([*batches, batches[-1]]):
        old = "drawn" if number < len(batches) else "replayed"
        case = recipe.model_copy(
            update={
                "sampling": recipe.sampling.model_copy(update={"batch_size": draw}),
                "learner": recipe.learner.model_copy(update={"micro_batch": micro}),
                "objective": recipe.objective.model_copy(update={"old_log_prob": old}),
            }
        )
        if draw not in groups:
            groups[draw] = RolloutWorker(case, worker="floor", policy=policy).sample(0, PROMPT, 0)
        largest, outside = floor(case, policy, groups[draw])
        cells.append(f"{largest:.1e} ({outside:.0%})")
    return " | ".join(cells)


def policy_of(recipe: Recipe, full: str, blocks: int, folder: Path) -> Any:
    if not full:
        loaders = family(recipe.model.family)
        return loaders.load_policy(recipe.model, seed=0, device=best_device(), text=True)
    return random_policy(recipe, folder, few(recipe.model.path, blocks))


def few(path: str, blocks: int) -> dict[str, Any]:
    """What makes a published transformer one of a few blocks of each kind."""
    config = published.PIPELINES[path]["transformer/config.json"]
    changes: dict[str, Any] = {
        name: min(blocks, config[name])
        for name in ("num_layers", "num_single_layers")
        if name in config
    }
    if "dual_attention_layers" in config:
        # SD3.5-M's first 13 of 24 blocks have two attentions.
        changes["dual_attention_layers"] = list(range((blocks + 1) // 2))
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", choices=RECIPES, default="", help="a published model's widths")
    parser.add_argument("--blocks", type=int, default=4, help="of each kind, with --full")
    parser.add_argument("--resolution", type=int, default=512, help="pixels a side, with --full")
    parser.add_argument("--images", type=int, default=24, help="of the group")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    asked = parser.parse_args()
    if asked.blocks < 2:
        parser.error("--blocks: 2 or more; the last one of SD3 has not every adapted layer")
    k = asked.images
    batches = [(k, k), (k // 3 or 1, k // 3 or 1), (k, k // 3 or 1), (k, 1)]
    columns = " | ".join([*(f"{d} / {m}" for d, m in batches), "the last, replayed"])
    print(f"| dtype | stored in | guidance | {columns} |\n|{'---|' * (4 + len(batches))}")
    for dtype in asked.dtypes:
        for guidance in (1.0, 4.5):
            cases = [case(asked, dtype, guidance, storage) for storage in ("float32", "bfloat16")]
            with tempfile.TemporaryDirectory() as folder:
                policy = policy_of(cases[0], asked.full, asked.blocks, Path(folder))
                for recipe in cases:
                    cells, storage = row(recipe, policy, batches), recipe.sampling.storage_dtype
                    print(f"| {dtype} | {storage} | {guidance:g} | {cells} |", flush=True)


def case(asked: argparse.Namespace, dtype: str, guidance: float, storage: str) -> Recipe:
    """The recipe of a row."""
    overrides: dict[str, Any] = {
        "model.dtype": dtype,
        # FLUX's own guidance is embedded: classifier-free guidance is another key.
        "model.true_cfg" if asked.full == "flux" else "model.guidance": guidance,
        "sampling.storage_dtype": storage,
        "sampling.steps": asked.steps,
        "sampling.group_size": asked.images,
        "objective.clip_low": 1e-4,
        "objective.clip_high": 1e-4,
        "objective.kl": 0,
        "learner.micro_batch": 1,
        "learner.updates": 1,
        "data.groups_per_step": 1,
        "runtime.learner.workers": 1,
    }
    if asked.full:
        overrides["model.resolution"] = asked.resolution
    return read(RECIPES.get(asked.full, "shapes_pec.yaml"), overrides)


if __name__ == "__main__":
    main()
