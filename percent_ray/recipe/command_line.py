"""The command line of a training job: its own few flags, the recipe's overrides, and `--help`."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from percent_ray.job import Parser
from percent_ray.recipe import load as recipes
from percent_ray.recipe.errors import known_keys, parameters
from percent_ray.recipe.load import RecipeError
from percent_ray.recipe.section import METHODS
from percent_ray.recipe.tree import Recipe

TFLOPS = 150.0
"""Of a worker, where `--tflops` does not say it: an H100's with SD3.5-M at 512x512, 181 in sampling
and 133 in updating (`benchmarks/baselines/gpu_sd3_h100.json`: utilisation x matrix_tflops)."""
RECIPE_FILE = "recipe.yaml"
"""The recipe that a run writes into its folder and that `--resume` reads."""

USAGE = """\
usage: python {job} [--config FILE | --resume RUN] [--only rollout|learn] [--from FILE]
                    [--dry-run [--measure] [--images-per-hour N] [--tflops N]]
                    [--section.key VALUE ...]

examples
  python {job}
      the embedded recipe: runs on any machine, no GPU, no network
  python {job} --config jobs/recipes/shapes_pcvae.yaml --learner.lr 1e-4 --run.steps=40
      another recipe, two keys of it changed
  python {job} --runtime.backend local
      everything in this process, no Ray
  python {job} --resume runs/NAME
      go on from the run's last checkpoint, in the same MLflow run
  python {job} --config FILE --dry-run --images-per-hour 20000
      what the recipe would do and need, in seconds and without its weights: memory and workers of
      each role; --measure runs a few steps for their times, else they are guessed from operations
      at --tflops (default 150, an H100's) trillion a second a worker
  python {job} --only rollout
      sample and perceive the groups of one step and write them to a file, to debug that half
  python {job} --only learn --from FILE
      learn from what `--only rollout` wrote

A recipe is YAML: what differs from the defaults below, or from the recipe that its key `base`
names. Command line > file > base > defaults. Values are YAML too: 1e-4, true, [dino, clip].
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a training job was asked to do."""

    recipe: Recipe
    resume: Path | None
    """Folder of the run to go on with; `recipe` is that run's, with the overrides."""
    only: Literal["rollout", "learn"] | None
    """Run one half of the loop, to debug it."""
    source: Path | None
    """File that `--only learn` reads."""
    dry_run: bool
    """Say what the recipe would do and need."""
    measure: bool
    """With the times of a few real steps in it."""
    images_per_hour: float | None
    """That it plans workers for."""
    tflops: float
    """Of a worker, where times are guessed."""


def parse(argv: Sequence[str], *, job: str, default: Path) -> Arguments:
    """Arguments of `argv`. `default` is the recipe file without --config and --resume.

    Prints `--help` and exits 0. Raises RecipeError with every problem.
    """
    if {"-h", "--help"} & set(argv):
        print_help(job)
        raise SystemExit(0)
    return _parse(argv, default)


def print_help(job: str) -> None:
    """Usage, examples, and every key with its default and its docstring."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(100, console.width) if console.is_terminal else 100
    console.print(USAGE.format(job=job), markup=False)
    usual = dict(recipes.flatten(recipes.defaults()))

    def table(title: str, keys: dict[str, FieldInfo]) -> None:
        rows = Table(box=None, title_justify="left", pad_edge=False, width=console.width)
        rows.add_column(title, style="cyan", header_style="bold cyan", no_wrap=True, width=30)
        rows.add_column("default", header_style="dim", width=24, overflow="fold")
        rows.add_column("", ratio=1)
        for key, field in keys.items():
            about = " ".join((field.description or "").split())
            if get_origin(field.annotation) is Literal:
                about += f" [{' | '.join(map(str, get_args(field.annotation)))}]"
            value = usual.get(key, field.default)
            rows.add_row(key, Text(_show(value)), Text(about))
        console.print(rows)
        console.print()

    for section in Recipe.model_fields:
        if section == "method":
            continue
        prefix = section + "."
        table(section, {k: f for k, f in known_keys().items() if k.startswith(prefix)})
    console.print("The methods, by method.name, each with its parameters:\n", markup=False)
    for name, method in METHODS.items():
        about = " ".join((method.__doc__ or "").split("\n\n")[0].split())
        console.print(f"{name}: {about}", markup=False)
        keys = {f"method.{k}": f for k, f in parameters(name).items() if k != "name"}
        if keys:
            table("", keys)


def _show(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def _parse(argv: Sequence[str], default: Path) -> Arguments:
    parser = Parser(add_help=False)
    parser.add_argument("--config")
    parser.add_argument("--resume")
    parser.add_argument("--only", choices=["rollout", "learn"])
    parser.add_argument("--from", dest="source")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--images-per-hour", type=_positive)
    parser.add_argument("--tflops", type=_positive)
    flags, overrides = parser.parse_known_args(argv)
    problems = [*_misspelt(overrides)]
    if flags.resume is not None and flags.config is not None:
        problems.append("--resume reads the run's own recipe; drop --config")
    if (flags.only == "learn") != (flags.source is not None):
        problems.append("--only learn and --from FILE go together; give both or neither")
    if flags.source is not None and not Path(flags.source).is_file():
        problems.append(f"--from: no file {flags.source}; write one with --only rollout")
    if flags.dry_run and (flags.only or flags.resume):
        problems.append("--dry-run is of a whole run from its start; drop --only and --resume")
    if flags.resume and flags.only:
        problems.append(
            "--only starts from the model before training, whatever has been trained; drop --resume"
        )
    if (flags.measure or flags.images_per_hour or flags.tflops) and not flags.dry_run:
        problems.append(
            "--measure, --images-per-hour and --tflops are of --dry-run; add it or drop them"
        )
    resume = _run_folder(flags.resume, problems) if flags.resume else None
    config = Path(flags.config) if flags.config else default
    if flags.config and not config.is_file():
        shipped = [path.name for path in default.parent.glob("*.yaml")]
        close = difflib.get_close_matches(config.name, shipped, 3, cutoff=0.5) or shipped[:3]
        problems.append(
            f"--config: no file {config}; {default.parent} has {len(shipped)} recipes, such as "
            f"{', '.join(sorted(close))}"
        )
    if problems:
        raise RecipeError(problems)
    recipe = recipes.load(resume / RECIPE_FILE if resume else config, overrides)
    source = Path(flags.source) if flags.source else None
    return Arguments(
        recipe=recipe,
        resume=resume,
        only=flags.only,
        source=source,
        dry_run=flags.dry_run,
        measure=flags.measure,
        images_per_hour=flags.images_per_hour,
        tflops=flags.tflops or TFLOPS,
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _misspelt(overrides: Sequence[str]) -> list[str]:
    """Flags of the job that are not quite spelt right; a recipe's key has a dot."""
    flags = ["--config", "--resume", "--only", "--from", "--help"]
    flags += ["--dry-run", "--measure", "--images-per-hour", "--tflops"]
    words = [word.partition("=")[0] for word in overrides if word.startswith("--")]
    words = [word for word in words if "." not in word]
    close = [(word, difflib.get_close_matches(word, flags, 1, cutoff=0.8)) for word in words]
    return [f"{word}: unknown; did you mean {match[0]}?" for word, match in close if match]


def _run_folder(run: str, problems: list[str]) -> Path:
    """Folder of RUN: a path, or the name of a run in the default folder."""
    named = Path(recipes.defaults()["run"]["folder"]) / run
    for folder in (Path(run), named):
        if (folder / RECIPE_FILE).is_file():
            return folder.resolve()
    problems.append(f"--resume: no {RECIPE_FILE} in {run} nor in {named}; give a run's folder")
    return named
