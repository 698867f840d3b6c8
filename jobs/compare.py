"""Compare methods: train every row over seeds, judge every checkpoint, write one report."""

import argparse
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from percent_ray import job

if TYPE_CHECKING:
    from percent_ray.comparison.plan import Plan

USAGE = """\
python jobs/compare.py [--config FILE] [--quick] [--only ROW,ROW] [--report] [--section.key VALUE]

examples
  python jobs/compare.py --quick
      a few rows, one seed
  python jobs/compare.py --only flow_grpo,pec_pickscore --seeds 1,2 --run.steps 20
      some rows; two seeds; a key of every row's recipe changed
  python jobs/compare.py --report
      the report of what has been run so far; trains nothing

Interrupted, the same command goes on where it was: finished runs are not run again. A row is an
entry of FILE; a new method is a file in percent_ray/objective/methods/ and a row here. Runs are Ray
tasks, on the cluster of RAY_ADDRESS or one that is started on this machine.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The job's own flags, and overrides of every row's recipe."""
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    default = Path(__file__).parent / "recipes" / "compare_shapes.yaml"
    parser.add_argument("--config", type=Path, default=default, help="rows, seeds, protocol (YAML)")
    parser.add_argument(
        "--quick", action="store_true", help="the rows of its key `quick`, one seed"
    )
    parser.add_argument("--only", type=_rows, default=(), help="names of rows, with commas")
    parser.add_argument("--seeds", type=_numbers, help="seeds, with commas, in place of the file's")
    parser.add_argument("--workers", type=_number, help="runs at a time, one core each")
    parser.add_argument("--folder", help="everything is written to FOLDER/NAME")
    parser.add_argument("--report", action="store_true", help="only write the report")
    return parser.parse_known_args(argv)


def _rows(text: str) -> list[str]:
    rows = [row for row in text.split(",") if row]
    if not rows:
        raise argparse.ArgumentTypeError(f"{text!r} names no row; give some such as flow_grpo,nft")
    return rows


def _numbers(text: str) -> list[int]:
    try:
        return [_number(seed.strip()) for seed in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds such as 1,2") from None


def _number(text: str) -> int:
    """Of plain digits: `int` would take 1_0 and the digits of other scripts, too."""
    if not re.fullmatch("-?[0-9]{1,19}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number such as 2")
    return int(text)


def main() -> None:
    job.run(compare, stopped="the same command goes on from here")


def compare() -> None:
    arguments, overrides = parse(sys.argv[1:])
    from percent_ray.comparison import plan, report, results, tables, verdict

    chosen = plan.load(
        arguments.config,
        overrides,
        rows=arguments.only,
        quick=arguments.quick,
        seeds=arguments.seeds,
        workers=arguments.workers,
        folder=arguments.folder,
    )
    failed = [] if arguments.report else train(chosen)
    table_1 = results.read(chosen)
    print("\n".join(results.strangers(chosen)), end="\n" * bool(results.strangers(chosen)))
    numbers = tables.tabulate(table_1, results.read(chosen, "s1"))
    page = report.write(table_1, numbers, shlex.join(["python", *sys.argv]))
    report.track(table_1, numbers, chosen.monitor)
    print("\n".join(["", *verdict.in_short(table_1), "", *verdict.verdict(table_1)]))
    print(f"\nreport: {page}")
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
        raise SystemExit(1)


def train(chosen: "Plan") -> list[str]:
    """Do what is unfinished under a bar with the time left, which counts from the first run that
    has ended; returns a line for each run that failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from percent_ray.comparison import runs

    jobs = runs.unfinished(chosen)
    comparison = chosen.comparison
    if anew := [job.folder.name for job in jobs if job.anew]:
        print(
            f"{len(anew)} runs in {comparison.runs} are of another recipe ({', '.join(anew)}): "
            "each is kept beside as NAME.before-1 and trained anew"
        )
    failed: list[str] = []
    columns = [TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("ETA {task.fields[eta]}")) as bar:
        task = bar.add_task("", total=len(jobs), eta="-")
        start = time.monotonic()
        ended = runs.run_all(jobs, workers=comparison.workers, gpus=comparison.gpus)
        for done, (job, error) in enumerate(ended, start=1):
            elapsed = time.monotonic() - start
            left = elapsed / done * (len(jobs) - done)
            eta = time.strftime("%a %H:%M", time.localtime(time.time() + left))
            bar.update(task, completed=done, eta=eta)
            line = f"{job.row} seed {job.seed}: {error or 'done'}"
            bar.console.print(f"{line}  {elapsed:.0f} s", markup=False)
            if error:
                failed.append(line)
    return failed


if __name__ == "__main__":
    main()
