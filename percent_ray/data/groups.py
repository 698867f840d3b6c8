"""A file of shaped groups: what `--only rollout` writes and `--only learn` reads.

One Arrow IPC file with a row a group: the shaped row's numbers, and its payload and condition
(`data/arrow.py`) as IPC streams of their own. The schema's metadata `percent_ray` is JSON with the
settings that the groups were drawn under.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from percent_ray.data import arrow
from percent_ray.objective.grpo import Weights
from percent_ray.recipe.errors import first_line
from percent_ray.recipe.tree import Recipe
from percent_ray.types import ShapedBatch, ShapedRow

SCHEMA = "groups"
NUMBERS = pa.list_(pa.list_(pa.float32()))
TYPES = {
    "group_id": pa.int64(),
    "version": pa.int64(),
    "payload": pa.binary(),
    "condition": pa.binary(),
}
"""Of the columns beside `weights`, a struct of `NUMBERS`."""


def write(batch: ShapedBatch, path: Path, recipe: Recipe) -> None:
    """Every row of a batch that holds its tables, and what it was drawn under."""
    names = list(batch.rows[0].weights.present()) if batch.rows else []
    fields = [*TYPES.items(), ("weights", pa.struct([(name, NUMBERS) for name in names]))]
    about = {"schema": SCHEMA, "version": arrow.VERSION, "settings": _settings(recipe)}
    schema = pa.schema(fields, {"percent_ray": json.dumps(about)})
    rows = [
        {
            "group_id": row.group_id,
            "version": row.version,
            "payload": _bytes(row.payload),
            "condition": _bytes(row.condition),
            "weights": {name: v.tolist() for name, v in row.weights.present().items()},
        }
        for row in batch.rows
    ]
    table = pa.Table.from_pylist(rows, schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(table)


def read(path: Path, recipe: Recipe) -> ShapedBatch:
    """The batch of a file of `write`, as one of version 0.

    Raises ValueError, in one line that names the file, for another or a damaged one, for one
    without groups or of other settings than the recipe's, and for numbers that are not finite.
    """
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        table.validate(full=True)
        about = arrow.metadata(table, SCHEMA)
        for name, kind in {**TYPES, "weights": None}.items():
            found = table.schema.field(name).type
            # A text in the place of bytes would be opened as a path.
            if found != kind and not (kind is None and pa.types.is_struct(found)):
                raise ValueError(f"its column {name} is {found}")
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        why = first_line(error).rstrip(".")
        raise ValueError(
            f"{path} is not a file of --only rollout: {why}; write one by --only rollout"
        ) from None
    if not rows:
        raise ValueError(
            f"{path} has no groups: of those that were drawn none teaches anything, as the rewards "
            "of each are all alike; write another by --only rollout with another run.seed"
        )
    _check_settings(path, about.get("settings"), recipe)
    return ShapedBatch(version=0, rows=tuple(_row(path, row) for row in rows))


def check_fits(
    path: Path,
    batch: ShapedBatch,
    recipe: Recipe,
    *,
    latent_shape: tuple[int, ...],
    condition_shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises ValueError where the tensors of a batch are not those of the policy whose latents and
    conditions have these shapes."""
    latents = "final" if recipe.is_forward else "latents"
    needed = {name: (1, *shape) for name, shape in condition_shapes.items()}
    for row in batch.rows:
        shape = tuple(arrow.column(row.payload, latents).shape[-3:])
        condition = {name: tuple(t.shape) for name, t in arrow.unpack(row.condition).items()}
        last = arrow.steps(row.payload).stop
        problem = (
            f"latents {shape}, the model's are {latent_shape}"
            if shape != latent_shape
            else f"a condition of {condition}, the model's are {needed}"
            if condition != needed
            else f"{last} steps, sampling.steps are {recipe.sampling.steps}"
            if last > recipe.sampling.steps
            else ""
        )
        if problem:
            raise ValueError(
                f"{path}: group {row.group_id} has {problem}; give the recipe that it was written "
                "with, or write another by --only rollout"
            )


def _row(path: Path, row: dict[str, Any]) -> ShapedRow:
    group_id = row["group_id"]
    try:
        payload, condition = (_opened(row[name], name) for name in ("payload", "condition"))
        steps = max(1, len(arrow.steps(payload)))
        columns = {name: arrow.column(payload, name) for name in payload.column_names}
        weights = {n: torch.tensor(v) for n, v in (row["weights"] or {}).items() if v is not None}
        for name, weight in weights.items():
            if tuple(weight.shape) != (payload.num_rows, steps):
                raise ValueError(
                    f"its {name} is {list(weight.shape)} and its payload has {payload.num_rows} "
                    f"images of {steps}"
                )
        for what, tensors in (
            ("payload's", columns),
            ("condition's", arrow.unpack(condition)),
            ("weights'", weights),
        ):
            _check_finite(what, tensors)
        return ShapedRow(group_id, row["version"], payload, condition, Weights(**weights))
    except (pa.ArrowException, ValueError, TypeError) as error:
        why = first_line(error).rstrip(".")
        raise ValueError(
            f"{path}: group {group_id}: {why}; write another by --only rollout"
        ) from None


def _check_finite(what: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise ValueError(
                f"{bad} of the {tensor.numel()} numbers of its {what} {name} are NaN or infinite"
            )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What groups are drawn under, by key of the recipe: under other settings what learns from them
    is not the policy that has drawn them."""
    model, sampling = recipe.model, recipe.sampling
    return {
        "learner.process": recipe.learner.process,
        "model.family": model.family,
        "model.path": Path(model.path).name,  # the same model may lie elsewhere
        "model.resolution": list(model.size),
        "model.guidance": model.guidance,
        "model.true_cfg": model.true_cfg,
        "model.t5": model.t5,
        "model.max_sequence_length": model.max_sequence_length,
        "sampling.steps": sampling.steps,
        "sampling.noise_level": sampling.noise_level,
        "sampling.kind": sampling.kind,
    }


def _check_settings(path: Path, settings: object, recipe: Recipe) -> None:
    then = settings if isinstance(settings, dict) else {}
    others = [
        f"{key} was {then.get(key, 'not said')}, is {now}"
        for key, now in _settings(recipe).items()
        if then.get(key) != now
    ]
    if others:
        raise ValueError(
            f"{path} was written under other settings ({'; '.join(others)}); give the recipe that "
            "it was written with, or write another by --only rollout"
        )


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _opened(data: bytes | None, name: str) -> pa.Table:
    try:
        table = pa.ipc.open_stream(pa.py_buffer(data or b"")).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"its {name} is torn or no table ({first_line(error)})") from None
    return table
