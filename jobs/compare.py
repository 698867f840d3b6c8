"""Compare methods: train every row over seeds, judge every checkpoint, write one report."""

import argparse
import shlex
import sys
import time
from pathlib import Path

USAGE = """\
python jobs/compare.py [--config FILE] [--quick] [--only ROW,ROW] [--report] [--section.key VALUE]

examples
  python jobs/compare.py --quick
      a few rows, one seed
  python jobs/compare.py --only flow_grpo,pec --seeds 1,2 --run.steps 20
      some rows; two seeds; a key of every row's recipe changed
  python jobs/compare.py --report
      the report of what has been run so far; trains nothing

Interrupted, the same command goes on where it was: finished runs are not run again. A row is an
entry of FILE; a new method is a function in percent_ray/objective/methods.py and a row here.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The job's own flags, and overrides of every row's recipe."""
    parser = argparse.ArgumentParser(
        usage=USAGE, allow_abbrev=False, description=(__doc__ or "").strip()
    )
    default = Path(__file__).parent / "recipes" / "compare_shapes.yaml"
    parser.add_argument("--config", type=Path, default=default, help="rows, seeds, protocol (YAML)")
    parser.add_argument(
        "--quick", action="store_true", help="the rows of its key `quick`, one seed"
    )
    parser.add_argument("--only", default="", help="names of rows, with commas")
    parser.add_argument("--seeds", default="", help="seeds, with commas, in place of the file's")
    parser.add_argument("--workers", type=int, help="runs at a time, one core each")
    parser.add_argument("--folder", help="everything is written to FOLDER/NAME")
    parser.add_argument("--report", action="store_true", help="only write the report")
    return parser.parse_known_args(argv)


def main() -> None:
    arguments, overrides = parse(sys.argv[1:])
    from percent_ray.comparison import plan, report, results, runs, tables
    from percent_ray.recipe import RecipeError

    try:
        chosen = plan.load(
            arguments.config,
            overrides,
            rows=[row for row in arguments.only.split(",") if row],
            quick=arguments.quick,
            seeds=[int(seed) for seed in arguments.seeds.split(",") if seed] or None,
            workers=arguments.workers,
            folder=arguments.folder,
        )
        failed = [] if arguments.report else train(chosen, runs)
        found = results.read(chosen)
        numbers = tables.tabulate(found, results.read(chosen, "s1"))
        page = report.write(found, numbers, shlex.join(["python", *sys.argv]))
        report.track(found, numbers, "", "percent_ray")
    except RecipeError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print("\n".join(["", *numbers.verdict, "", f"report: {page}"]))
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
        raise SystemExit(1)


def train(chosen, runs) -> list[str]:  # noqa: ANN001 imported after the arguments are read
    """Do the runs under a bar with the time left; returns a line for each one that failed."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    failed: list[str] = []
    left = len(runs.unfinished(chosen))
    columns = [TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=left + 1)
        start = time.monotonic()
        for done, (row, seed, error) in enumerate(runs.run_all(chosen), start=1):
            bar.update(task, completed=min(done, left + 1))
            bar.console.print(
                f"{row} seed {seed}: {error or 'done'}  {time.monotonic() - start:.0f} s"
            )
            if error:
                failed.append(f"{row} seed {seed}: {error}")
    return failed


if __name__ == "__main__":
    main()
