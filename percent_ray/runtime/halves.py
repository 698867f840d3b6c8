"""Each half of the loop alone, in this process: `--only rollout` and `--only learn --from FILE`.

The file between them is one Arrow IPC file with a row a group: the shaped row's numbers, and its
payload and condition as IPC streams of their own.
"""

import json
import time
from pathlib import Path

import pyarrow as pa
import torch

from percent_ray.data.prompts import PromptStream, of_recipe
from percent_ray.learn.engine import TorchEngine
from percent_ray.models.base import best_device, family
from percent_ray.monitor.plots import grid
from percent_ray.objective.grpo import Weights
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.shape import Group, shape
from percent_ray.types import ShapedBatch, ShapedRow


def sample_groups(recipe: Recipe) -> Path:
    """Sample, perceive and shape the groups of step 0 under the model as it is; write them down.

    Returns the file; a picture grid lies beside it.
    """
    prompts, _ = of_recipe(recipe)
    sampler = RolloutWorker(recipe, worker="rollout")
    perceiver = PerceptionWorker(recipe, worker="perception")
    print("\n".join([*sampler.ready(), *perceiver.ready()]))
    perceiver.try_out(prompts[0])
    stream = PromptStream(prompts, recipe.run.seed)
    groups: list[Group] = []
    for group_id in range(recipe.data.groups_per_step):
        prompt = stream.prompt(group_id)
        trajectory = sampler.sample(group_id, prompt, version=0)
        perception = perceiver.perceive(trajectory, pictures=True)
        groups.append((trajectory, perception))
        rewards = "  ".join(f"{k} {v.mean():.4f}" for k, v in perception.rewards.items())
        print(
            f"group {group_id}: {prompt.text!r}  {rewards}  "
            f"sample {trajectory.span.seconds:.1f} s  perceive {perception.span.seconds:.1f} s"
        )
    batch, _, metrics = shape(recipe, 0, groups, {})
    folder = Path(recipe.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe.run.name}-{time.strftime('%Y%m%d-%H%M%S')}.arrow"
    _write(batch, path)
    pictures = [(t.prompt.text, p.thumbnails) for t, p in groups if p.thumbnails is not None]
    grid(pictures, path.with_suffix(".png"))
    print(json.dumps(metrics, indent=1))
    print(f"groups: {path}\npictures: {path.with_suffix('.png')}")
    return path


def learn_groups(recipe: Recipe, source: Path) -> dict[str, float]:
    """One learner step on a file of `sample_groups`; prints and returns its metrics.

    Raises ValueError for another file.
    """
    batch = _read(source)
    model = recipe.model
    policy = family(model.family).load_policy(
        model, seed=recipe.run.seed, device=best_device(), text=False
    )
    learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
    update = learner.update(batch)
    print(json.dumps(dict(update.metrics), indent=1))
    print(f"{len(batch.rows)} groups in {update.span.seconds:.1f} s")
    return dict(update.metrics)


def _write(batch: ShapedBatch, path: Path) -> None:
    rows = [
        {
            "group_id": row.group_id,
            "version": row.version,
            "weights": {name: v.tolist() for name, v in row.weights.present().items()},
            "payload": _stream(row.payload),
            "condition": _stream(row.condition),
        }
        for row in batch.rows
    ]
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read(path: Path) -> ShapedBatch:
    try:
        with pa.OSFile(str(path)) as file:
            rows = pa.ipc.open_file(file).read_all().to_pylist()
        shaped = tuple(
            ShapedRow(
                group_id=row["group_id"],
                version=row["version"],
                payload=pa.ipc.open_stream(row["payload"]).read_all(),
                condition=pa.ipc.open_stream(row["condition"]).read_all(),
                weights=Weights(**{k: torch.tensor(v) for k, v in row["weights"].items()}),
            )
            for row in rows
        )
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path} is not a file of --only rollout: {error}") from None
    return ShapedBatch(version=0, rows=shaped)


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
