"""One page of figures out of any runs: the paper's, as far as the runs have measured them."""

import argparse
import shlex
import sys
from pathlib import Path

from percent_ray import job

USAGE = """\
python jobs/report.py [RUN ...] [--to FILE]

examples
  python jobs/report.py
      the newest run in runs/, also while it is still training
  python jobs/report.py runs/shapes_pec
      one run: RUN/report.html
  python jobs/report.py shapes_flow_grpo shapes_pec --to both.html
      two runs, by name in runs/ or by folder, as two lines of every figure

A page has the pictures of the probes over the training, diversity at the same reward, the paper's
figures 2, 4, 5 (the law, with intervals), 6, 7 and S4, and whether steps were signal or noise; with
each what to look for, and its numbers as a table. What a run has not measured is told, with the
recipe's key that measures it:
  monitor.probe_every 20                 probes: the same prompts and noise all along
  monitor.spaces [dino, clip]            Vendi and variance in these spaces
  perceptual.spaces [pickscore, dino]    perceptual entropy, and the law
The page is one file that fetches nothing. Several runs are written to the first one's folder.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a folder, or a name in runs/")
    parser.add_argument("--to", type=Path, metavar="FILE", help="of the page (RUN/report.html)")
    return parser.parse_args(argv)


def main() -> None:
    job.run(report)


def report() -> None:
    arguments = parse(sys.argv[1:])
    from percent_ray.report import page, runs

    command = shlex.join(["python", *sys.argv])
    print("\n".join(page.write(runs.read_all(arguments.runs), command, arguments.to)))


if __name__ == "__main__":
    main()
