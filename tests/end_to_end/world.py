"""A whole recipe on random tiny models, seconds to run; built once a test session."""

from pathlib import Path
from typing import Any

from percent_ray.data.prompts import PromptStream, read_prompts
from percent_ray.loop import Loop, Progress
from percent_ray.recipe.paths import locate_prompts
from percent_ray.recipe.tree import (
    Data,
    Learner,
    Model,
    Monitor,
    Recipe,
    Role,
    Run,
    Runtime,
    Sampling,
    Scorer,
)
from percent_ray.types import Prompt
from tests import tiny
from tests.fakes import FakeObserver

THIRD = Role(cpus=0.3, gpus=0)
CLOCKS = ("time/", "throughput/", "queue/", "pool/")
"""Begin the names of what differs between two runs of one recipe."""


def build(folder: Path) -> Path:
    """A folder with `sd3`, `flux`, `tiny`, `clip` and `prompts.txt`."""
    tiny.build_sd3(folder / "sd3")
    tiny.build_flux(folder / "flux")
    tiny.build_tiny(folder / "tiny")
    tiny.build_clip(folder / "clip")
    (folder / "prompts.txt").write_text("red circle\nblue square\ngreen cross\n")
    return folder


def recipe(world: Path, runs: Path, **runtime: Any) -> Recipe:
    """PEC on the world of `build`: 3 steps of 2 groups of 4 images, a checkpoint every 2 steps."""
    return Recipe(
        run=Run(steps=3, checkpoint_every=2, folder=str(runs), name="tiny"),
        model=Model(
            path=str(world / "sd3"),
            resolution=16,
            guidance=2.0,
            dtype="float32",
            t5=False,
            max_sequence_length=4,
            lora_rank=4,
        ),
        scorers={
            "pickscore": Scorer(path=str(world / "clip"), weight=1.0),
            "clip": Scorer(path=str(world / "clip")),
        },
        sampling=Sampling(steps=4, group_size=4, batch_size=4),
        method={"name": "pec"},
        learner=Learner(micro_batch=2, lr=1e-3, ema_every=1),
        data=Data(prompts=str(world / "prompts.txt"), groups_per_step=2),
        monitor=Monitor(spaces=("clip",), probe_every=2, probe_groups=1),
        runtime=Runtime(**{"rollout": THIRD, "perception": THIRD, "learner": THIRD} | runtime),
    )


def forward(recipe: Recipe) -> Recipe:
    """The same by the forward process, whose old policy is not the trained one."""
    fields = recipe.model_dump()
    fields["method"] = {"name": "marginal_pec", "image_spaces": ["clip"]}
    fields["learner"] |= {"process": "forward", "old": {"first": 0.3, "most": 0.3}}
    fields["forward"] |= {"times": 2}
    return Recipe.model_validate(fields)


def normalized(recipe: Recipe) -> Recipe:
    """The same with a second reward, both normalized."""
    fields = recipe.model_dump()
    for scorer in fields["scorers"].values():
        scorer |= {"weight": 1.0, "normalize": True}
    return Recipe.model_validate(fields)


def flux(recipe: Recipe) -> Recipe:
    """The same of a FLUX pipeline, at a resolution that is no square."""
    fields = recipe.model_dump()
    folder = Path(recipe.model.path).parent / "flux"
    fields["model"] |= {"family": "flux", "path": str(folder), "t5": True, "resolution": (12, 16)}
    fields["model"] |= {"true_cfg": 1.5, "lora_targets": tiny.TARGETS}
    return Recipe.model_validate(fields)


def with_tiny_decoder(recipe: Recipe, world: Path) -> Recipe:
    """The same with transitions scored by the AutoencoderTiny of the world."""
    changes = {"decoder": "tiny", "tiny_path": str(world / "tiny")}
    return recipe.model_copy(update={"perceptual": recipe.perceptual.model_copy(update=changes)})


def first(recipe: Recipe) -> Prompt:
    """What scorers are tried on."""
    return read_prompts(locate_prompts(recipe.data.prompts))[0]


async def train(recipe: Recipe, roles: Any) -> FakeObserver:
    """Run the loop over `roles` to its end; returns what it told."""
    observer = FakeObserver()
    prompts = read_prompts(locate_prompts(recipe.data.prompts))

    async def checkpoint(progress: Progress) -> None:
        """These runs keep nothing."""

    loop = Loop(
        recipe,
        roles,
        stream=PromptStream(prompts, seed=recipe.run.seed),
        probes=prompts[: recipe.monitor.probe_groups],
        observer=observer,
        checkpoint=checkpoint,
        progress=Progress(),
    )
    await loop.run()
    return observer


def numbers(observer: FakeObserver) -> list[dict[str, float]]:
    """The metrics of every step that are not about time."""
    return [
        {name: value for name, value in metrics.items() if not name.startswith(CLOCKS)}
        for _, metrics, _ in observer.steps
    ]
