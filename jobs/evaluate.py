"""Measure quality and diversity of checkpoints and of any text-to-image pipeline of diffusers."""

import argparse
import asyncio
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from percent_ray import job

if TYPE_CHECKING:
    from percent_ray.evaluation.engine import Engine, Work
    from percent_ray.evaluation.plan import Plan
    from percent_ray.evaluation.results import Results
    from percent_ray.evaluation.store import Store

USAGE = """\
python jobs/evaluate.py [RUN[@STEP] ...] [--rows FILE] [--prompts FILE] [--images N] [--keep] ...

examples
  python jobs/evaluate.py
      the newest run's checkpoints and the model that it began with, by the embedded world's judges
  python jobs/evaluate.py runs/shapes_pec@30 runs/shapes_pec@40 --images 30
      two checkpoints; RUN is its last one, RUN@all are all that run.keep_checkpoints has kept,
      RUN@0 is the model before training
  python jobs/evaluate.py --rows jobs/recipes/evaluate_paper.yaml runs/sd35 --folder runs/paper
      a run of SD3.5-M by the published judges, on 400 prompts with 30 pictures each
  python jobs/evaluate.py --rows rows.yaml
      rows of your own, such as
        base: jobs/recipes/evaluate_paper.yaml         # judges, prompts
        rows:
          - {label: SDXL, pipeline: stabilityai/stable-diffusion-xl-base-1.0, steps: 40}
          - {label: ours, pipeline: black-forest-labs/FLUX.1-dev, lora: exports/lora, guidance: 3.5}
          - {label: last step, run: runs/flux}

Interrupted, the same command goes on where it was: what is on disk is not done again. Pictures are
drawn and judged by Ray actors, on the cluster of RAY_ADDRESS or one that is started on this
machine. docs/evaluation.md has the protocol, every key of a file, and what is written where.
"""
DEFAULT = Path(__file__).parent / "recipes" / "evaluate_shapes.yaml"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    parser.add_argument("runs", nargs="*", metavar="RUN[@STEP]", help="in the place of FILE's rows")
    parser.add_argument(
        "--rows", type=Path, default=DEFAULT, metavar="FILE", help="rows, judges, prompts (YAML)"
    )
    parser.add_argument("--prompts", metavar="FILE", help="prompts, .txt or .jsonl")
    parser.add_argument("--images", type=int, metavar="N", help="pictures of a prompt")
    parser.add_argument("--seed", type=int, metavar="N", help="of the noise")
    parser.add_argument("--steps", type=int, metavar="N", help="of checkpoints' ODE")
    parser.add_argument("--judges", metavar="NAME,NAME", help="of FILE's scorers; - for none")
    parser.add_argument("--encoders", metavar="NAME,NAME", help="of FILE's scorers; - for none")
    parser.add_argument("--against", metavar="LABEL", help="the row that others are tested against")
    parser.add_argument(
        "--keep", action="store_true", default=None, help="keep every picture, as PNG files"
    )
    parser.add_argument("--folder", metavar="FOLDER", help="everything is written there")
    parser.add_argument("--report", action="store_true", help="only measure what is there")
    return parser.parse_args(argv)


def main() -> None:
    job.run(measure, stopped="the same command goes on from here")


def measure() -> None:
    results, failed = evaluate(parse(sys.argv[1:]))
    if failed or results.missing:
        print("\n".join(["not measured:", *(failed or results.missing)]), file=sys.stderr)
        raise SystemExit(1)


def evaluate(arguments: argparse.Namespace) -> tuple["Results", list[str]]:
    """Do what is to be done and write the report; returns it with a line for each failure."""
    from percent_ray.evaluation import plan, report, results
    from percent_ray.evaluation.store import Store

    chosen = plan.load(
        arguments.rows,
        arguments.runs,
        newest=arguments.rows == DEFAULT,
        **{name: _names(getattr(arguments, name)) for name in ("judges", "encoders")},
        **{
            name: getattr(arguments, name)
            for name in ("prompts", "images", "seed", "steps", "against", "keep", "folder")
        },
    )
    for note in chosen.notes:
        print(note)
    store = Store(chosen.evaluation.home, images=chosen.evaluation.images)
    with store.writing():
        claim(chosen, store)
        failed = [] if arguments.report else draw_and_judge(chosen, store)
        found = results.collect(chosen, store, tell=lambda label: print(f"measuring {label}"))
        lines = report.write(found, store, shlex.join(["python", *sys.argv]))
    print("\n".join(["", *lines]))
    return found, failed


def claim(chosen: "Plan", store: "Store") -> None:
    """Whatever is in the folder already is of the same evaluation."""
    from percent_ray.evaluation.store import stamps

    evaluation = chosen.evaluation
    store.claim({"images": evaluation.images, "seed": evaluation.seed}, chosen.prompts)
    for row in chosen.rows:
        place = store.row(row.name)
        place.claim(row.label, row.identity())
        for name, settings in chosen.scorers.items():
            asked = chosen.asked[name]._asdict()
            kept = settings.model_dump(include={"kind", "path", "color_path", "served_model"})
            place.claim_judge(name, {**kept, **asked, "files": stamps(settings.path)})


def draw_and_judge(chosen: "Plan", store: "Store") -> list[str]:
    """What is not done yet, under a bar with the time left; a line for each failure."""
    from percent_ray.evaluation.engine import cluster, todo
    from percent_ray.evaluation.results import judged

    works = todo(chosen, store)
    whole = len(chosen.rows) * len(chosen.prompts)
    if len(works) < whole:
        print(f"{whole - len(works)} of {whole} prompts of rows are done; {len(works)} are left")
    if not works:
        return []
    for row in chosen.rows:
        for _ in judged(chosen, store.row(row.name)):
            pass  # what is damaged is told before hours of drawing
    with cluster(chosen, store) as engine:
        asyncio.run(_run(engine, works, chosen.evaluation.images))
    return [
        f"{label}: {what} failed on {len(lines)} of {len(chosen.prompts)} prompts: {lines[0]}"
        for (label, what), lines in engine.failures.items()
    ]


async def _run(engine: "Engine", works: list["Work"], images: int) -> None:
    from rich import progress

    print("loading the judges")
    print("\n".join(await engine.ready()))
    columns = [
        progress.TextColumn("pictures"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
    ]
    with progress.Progress(*columns, speed_estimate_period=600) as bar:
        task = bar.add_task("", total=images * len(works))

        def done() -> None:
            bar.update(task, advance=images)

        await engine.run(works, say=lambda line: bar.console.print(line, markup=False), done=done)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.strip("-").split(",") if name]


if __name__ == "__main__":
    main()
