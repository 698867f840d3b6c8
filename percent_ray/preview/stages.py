"""Seconds of a step by stage, and how many workers a role needs so that none waits."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from percent_ray import run
from percent_ray.metrics import STEP_S
from percent_ray.monitor import history
from percent_ray.preview.sizes import Sizes
from percent_ray.recipe.tree import Recipe

STAGES = {"rollout": "sample", "perception": "perceive", "learner": "update"}
"""The stage that each role works on."""
STEPS = 4
"""Of a measured run."""
BACKWARD = 1.0
"""Forward passes that a backward one costs: gradients of activations; those of frozen weights are
not computed. In full fine-tuning it is 2."""


@dataclass(frozen=True)
class Seconds:
    """Of one learner step, summed over the workers of each role."""

    by_role: Mapping[str, float]
    source: str
    """Where the numbers come from."""

    def step(self, recipe: Recipe) -> float:
        """Of a whole step: the slowest role where they overlap, else one after the other."""
        shares = [self.by_role[role] / _workers(recipe, role) for role in STAGES]
        local = recipe.runtime.backend == "local"
        if local or not recipe.runtime.max_staleness:
            # Groups of one step still overlap: a group is perceived while others are drawn.
            return sum(shares) if local else max(shares[:2]) + shares[2]
        return max(shares)

    def needed(self, seconds: float) -> dict[str, int]:
        """Workers of each role for a step in `seconds`, none waiting for another."""
        return {role: math.ceil(total / seconds - 1e-9) for role, total in self.by_role.items()}


def _workers(recipe: Recipe, role: str) -> int:
    return 1 if recipe.runtime.backend == "local" else getattr(recipe.runtime, role).workers


def guessed(recipe: Recipe, sizes: Sizes, *, tflops: float) -> Seconds:
    """From floating-point operations, at `tflops` trillions a second of useful work a worker.
    Encoders, rewards and transfers are not counted."""
    sampling, images = recipe.sampling, recipe.trained_images
    steps = len(recipe.trained_steps(0))
    passes = steps or (recipe.forward.times or int(sampling.train_fraction * sampling.steps))
    back = BACKWARD if recipe.model.lora_rank else 2 * BACKWARD
    conditional = 1 / (2 if len(sizes.policy.condition_shapes()) > 2 else 1)
    # The branch without gradients is drawn and replayed, and has no backward pass.
    velocities = passes * (1 + back * conditional)
    velocities += passes if recipe.is_forward else 0.0  # of the old policy
    velocities += passes if recipe.has_kl else 0.0  # of the reference
    if recipe.objective.old_log_prob == "replayed" and not recipe.is_forward:
        velocities += passes * (1 - 1 / recipe.learner.updates)
    scored = recipe.perceptual.steps or steps
    decoded = 2 * scored if recipe.measured_spaces(probe=False) else 0
    work = {
        "rollout": images * sampling.steps * sizes.velocity_flops,
        "perception": images * (sizes.decode_flops + decoded * sizes.score_flops),
        "learner": images * velocities * sizes.velocity_flops,
    }
    rate = tflops * 1e12
    source = f"counted operations at {tflops:g} TFLOP/s a worker: a guess, --measure measures"
    return Seconds({role: operations / rate for role, operations in work.items()}, source)


def measured(recipe: Recipe) -> tuple[Seconds, float]:
    """Of the last but one of `STEPS` steps of a real run in a temporary folder, under the recipe's
    own runtime, and the seconds of that whole step. The first ones warm up, and beside the last one
    nothing is sampled ahead."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"folder": folder, "steps": STEPS, "checkpoint_every": STEPS}
        short = recipe.model_copy(
            update={
                "run": recipe.run.model_copy(update=changes),
                "monitor": recipe.monitor.model_copy(update={"probe_every": 0, "tracking_uri": ""}),
            }
        )
        print(f"measuring {STEPS} steps of a real run, in a temporary folder\n")
        steps = history.read(run.train(short) / history.FILE)
    last = steps[STEPS - 2]
    seconds = {role: last[f"time/{stage}_s"] for role, stage in STAGES.items()}
    seconds["learner"] *= _workers(recipe, "learner")  # its ranks work at once, and report as one
    return Seconds(seconds, "measured: a step of a real run"), last[STEP_S]
