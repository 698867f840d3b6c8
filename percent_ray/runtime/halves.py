"""Each half of the loop alone, in this process: `--only rollout` and `--only learn --from FILE`.

The file between them: `data/groups.py`.
"""

import json
import time
from pathlib import Path

from percent_ray.data import groups as file_of
from percent_ray.data.prompts import PromptStream, of_recipe
from percent_ray.learn.engine import TorchEngine
from percent_ray.models.base import best_device, family
from percent_ray.monitor.plots import grid
from percent_ray.recipe.tree import Recipe
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.shape import Group, shape


def sample_groups(recipe: Recipe) -> Path:
    """Sample, perceive and shape the groups of step 0 under the model as it is; write them down.

    Returns the file; a picture grid lies beside it.
    """
    prompts, probes = of_recipe(recipe)
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
    measured: list[Group] = []
    if recipe.needs_probes:
        for number, prompt in enumerate(probes):
            trajectory = sampler.sample(-1 - number, prompt, version=0)
            measured.append((trajectory, perceiver.perceive(trajectory, pictures=False)))
    batch, _, metrics = shape(recipe, 0, groups, {}, measured)
    folder = Path(recipe.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe.run.name}-{time.strftime('%Y%m%d-%H%M%S')}.arrow"
    file_of.write(batch, path, recipe)
    pictures = [(t.prompt.text, p.thumbnails) for t, p in groups if p.thumbnails is not None]
    grid(pictures, path.with_suffix(".png"))
    print(json.dumps(metrics, indent=1))
    if not batch.rows:
        print("no group teaches anything: the rewards of each are all alike; --only learn will not")
    print(f"groups: {path}\npictures: {path.with_suffix('.png')}")
    return path


def learn_groups(recipe: Recipe, source: Path) -> dict[str, float]:
    """One learner step on a file of `sample_groups`; prints and returns its metrics.

    Raises ValueError for another or a damaged file, and for one of other settings.
    """
    batch = file_of.read(source, recipe)
    model = recipe.model
    policy = family(model.family).load_policy(
        model, seed=recipe.run.seed, device=best_device(), text=False
    )
    shapes = {
        "latent_shape": policy.latent_shape,
        "condition_shapes": policy.condition_shapes(),
    }
    file_of.check_fits(source, batch, recipe, **shapes)
    learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
    update = learner.update(batch)
    print(json.dumps(dict(update.metrics), indent=1))
    print(f"{len(batch.rows)} groups in {update.span.seconds:.1f} s")
    return dict(update.metrics)
