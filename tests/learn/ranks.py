"""What each of two gloo ranks does in the ZeRO tests. All of it in one start of the processes:
importing deepspeed takes longer than the work."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from percent_ray.data import arrow
from percent_ray.learn.zero import ZeroEngine
from percent_ray.recipe import tree
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.learner import Learner
from percent_ray.types import ShapedBatch
from tests.learn.fake import FakePolicy, draw_batch

STEPS = 2


def train(learner: Learner, recipe: Recipe, *, first: int = 0, steps: int = STEPS) -> list[dict]:
    """Consume `steps` batches, all drawn by the untrained policy; their metrics. The ratios go off
    policy, and of 15 images 2 ranks with micro-batches of 3 get uneven shares, one with padding.
    A rank has the tables of its own groups alone, as on a cluster."""
    metrics = []
    for step in range(first, first + steps):
        batch = draw_batch(
            FakePolicy(), recipe, groups=3, images=5, step=step, version=step, drawn_by=0
        )
        metrics.append(dict(learner.update(own(learner, batch)).metrics))
    return metrics


def own(learner: Learner, batch: ShapedBatch) -> ShapedBatch:
    """Without the tables of the groups that this rank does not ask for."""
    mine = learner.groups(batch)
    rows = [
        row if number in mine else replace(row, payload=None, condition=None)
        for number, row in enumerate(batch.rows)
    ]
    return replace(batch, rows=tuple(rows))


def with_learner(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"learner": recipe.learner.model_copy(update=changes)})


def forward(recipe: Recipe) -> Recipe:
    """The forward process, with an old policy that is not the trained one."""
    old = tree.Old(first=0.5, most=0.5)
    recipe = with_learner(recipe, process="forward", old=old)
    return recipe.model_copy(update={"forward": tree.Forward(times=2)})


def replayed(recipe: Recipe) -> Recipe:
    """Old log-probs by the learner, of three optimizer steps."""
    recipe = with_learner(recipe, updates=3)
    objective = recipe.objective.model_copy(update={"old_log_prob": "replayed"})
    return recipe.model_copy(update={"objective": objective})


def renewing(recipe: Recipe) -> Recipe:
    """A reference that is renewed at every step."""
    objective = recipe.objective.model_copy(update={"reference_every": 1})
    return recipe.model_copy(update={"objective": objective})


def rank_main(rank: int, port: int, recipe: Recipe, folder: Path) -> None:
    """Writes every result of this rank to FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    results: dict = {"stages": {}}
    for stage in (0, 1, 2, 3):
        results["stages"][stage] = one_stage(with_learner(recipe, zero_stage=stage))
    results["forward"] = {
        stage: one_stage(with_learner(forward(recipe), zero_stage=stage)) for stage in (0, 1, 2, 3)
    }
    results["forward_resumed"] = resume(
        with_learner(forward(recipe), zero_stage=3), folder / "checkpoint_forward"
    )
    results["signal"] = signal(with_learner(recipe, zero_stage=2, updates=1))
    results["renewed"] = one_stage(with_learner(renewing(recipe), zero_stage=3))
    results["replayed"] = one_stage(with_learner(replayed(recipe), zero_stage=3))
    results["unclipped"] = one_stage(with_learner(recipe, zero_stage=1, max_grad_norm=0.0))
    results["mixed"] = one_stage(with_learner(recipe, zero_stage=3), dtype=torch.bfloat16)
    results["resumed"] = resume(with_learner(recipe, zero_stage=2), folder / "checkpoint")
    results["resumed_3"] = resume(with_learner(recipe, zero_stage=3), folder / "checkpoint_3")
    results["bombed"] = bombed(with_learner(recipe, zero_stage=3), folder / "checkpoint_3")
    results["bf16"] = {
        stage: bf16(with_learner(recipe, zero_stage=stage, lr=1e-4, max_grad_norm=0.0))
        for stage in (1, 2, 3)
    }
    results["nan"] = {stage: not_finite(with_learner(recipe, zero_stage=stage)) for stage in (0, 2)}
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def make(recipe: Recipe, **policy: Any) -> Learner:
    fake = FakePolicy(**policy)
    return Learner(recipe, fake, ZeroEngine(recipe.learner, fake))


def one_stage(recipe: Recipe, **policy: Any) -> dict:
    learner = make(recipe, **policy)
    metrics = train(learner, recipe)
    table, checksum = learner.publish()
    weights = table and {k: v.clone() for k, v in arrow.unpack(table).items()}
    average = learner._ema.gather() if learner._ema else None
    found = {"metrics": metrics, "weights": weights, "checksum": checksum, "ema": average}
    return found | average_in_parts(learner)


def average_in_parts(learner: Learner) -> dict:
    """The EMA, with a -0 in each rank's part: the parts of this one, and all of them joined."""
    if learner._ema is None:
        return {}
    for part in learner._ema._parts.values():
        part[0] = -0.0
    return {"parts": learner._ema._parts, "joined": learner._ema.gather()}


def signal(recipe: Recipe, learner: Learner | None = None) -> dict[str, float]:
    """Of 4 groups of 6 images, whole ones on every rank, in micro-batches of 3."""
    learner = learner or make(recipe)
    batch = draw_batch(FakePolicy(), recipe, groups=4, images=6)
    metrics = learner.update(own(learner, batch)).metrics
    return {name: value for name, value in metrics.items() if name.startswith("signal/")}


def resume(recipe: Recipe, folder: Path) -> dict:
    """Half the steps, save, and the other half in a new learner whose weights start elsewhere."""
    learner = make(recipe)
    train(learner, recipe, steps=STEPS // 2)
    folder.mkdir(exist_ok=True)
    learner.save(folder)
    del learner
    learner = make(recipe)
    learner.load(folder)
    saved = learner.publish()[1]
    metrics = train(learner, recipe, first=STEPS // 2, steps=STEPS // 2)
    table, _ = learner.publish()
    weights = table and {k: v.clone() for k, v in arrow.unpack(table).items()}
    average = learner._ema.gather() if learner._ema else None
    return {"metrics": metrics, "weights": weights, "ema": average, "saved": saved}


def bf16(recipe: Recipe) -> dict:
    """Nothing is clipped: which ratios are is for the last bits of a bfloat16 step to say."""
    unclipped = recipe.objective.model_copy(update={"clip_low": 0.9, "clip_high": 0.9})
    recipe = recipe.model_copy(update={"objective": unclipped})
    learner = make(recipe, full=True, dtype=torch.bfloat16)
    metrics = train(learner, recipe)
    table, _ = learner.publish()
    dtypes = {str(t.dtype) for t in arrow.unpack(table).values()} if table else None
    return {"metrics": metrics, "dtypes": dtypes}


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def bombed(recipe: Recipe, folder: Path) -> dict:
    """What loading a checkpoint of `resume` says whose optimizer states hold code, and whether the
    code has run."""
    learner, rank = make(recipe), torch.distributed.get_rank()
    ran = folder / f"ran-{rank}"
    [path] = (folder / "zero").glob(f"zero_pp_rank_{rank}_*optim_states.pt")
    torch.save({"optimizer_state_dict": Bomb(ran)}, path)
    try:
        learner.load(folder)
    except ValueError as error:
        return {"said": str(error), "ran": ran.exists()}
    return {"said": "", "ran": ran.exists()}


def not_finite(recipe: Recipe) -> str:
    learner = make(recipe)
    batch = draw_batch(FakePolicy(), recipe)
    rows = [
        replace(row, weights=row.weights.map(lambda weight: weight * float("nan")))
        for row in batch.rows
    ]
    try:
        learner.update(replace(batch, rows=tuple(rows)))
    except FloatingPointError as error:
        return str(error)
    return ""
