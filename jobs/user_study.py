"""A blind user study of two rows of an evaluation: make its page, count what annotators answer."""

import argparse
import sys
from pathlib import Path

from percent_ray import job

MAKE = """\
python jobs/user_study.py make ROW_A ROW_B [--pairs 20] [--images 8] [--seed 0]
                                 [--evaluation EVAL] [--to FOLDER] [--size 384] [--consent TEXT]
"""
COUNT = """\
python jobs/user_study.py count ANSWERS/*.json [--key FOLDER/key.json]
"""
USAGE = f"""\
{MAKE}       {COUNT}
examples
  python jobs/evaluate.py --rows rows.yaml --keep
      keeps the pictures that a study shows
  python jobs/user_study.py make Flow-GRPO PEC
      one page, study.html, for any browser, and key.json, which says which side is which; send the
      page to annotators and keep the key
  python jobs/user_study.py count answers/*.json --key FOLDER/key.json
      percentages with intervals, agreement, and the figure, beside the key

docs/user_study.md says how to run a study well.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="make | count")
    make = verbs.add_parser("make", usage=MAKE, help="write page and key")
    for row in ("row_a", "row_b"):
        make.add_argument(row, metavar=row.upper(), help="a row's label, slug or folder")
    make.add_argument("--pairs", type=int, default=20, metavar="N", help="prompts (20)")
    make.add_argument("--images", type=int, default=8, metavar="N", help="of a set (8)")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and sides (0)")
    make.add_argument(
        "--evaluation",
        type=Path,
        default=Path("runs/evaluation"),
        metavar="EVAL",
        help="folder of jobs/evaluate.py with kept pictures (runs/evaluation)",
    )
    make.add_argument(
        "--to", type=Path, metavar="FOLDER", help="of page and key (EVAL/user_study/ID)"
    )
    make.add_argument(
        "--size", type=int, default=384, metavar="PX", help="of a picture's longest side (384)"
    )
    make.add_argument(
        "--consent", default="", metavar="TEXT", help="a line that annotators must tick"
    )
    count = verbs.add_parser("count", usage=COUNT, help="count answers")
    count.add_argument("answers", nargs="+", type=Path, metavar="FILE", help="annotators' files")
    count.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="of the study; else key.json beside the first file, or in the folder above",
    )
    return parser.parse_args(argv)


def main() -> None:
    job.run(study)


def study() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.verb == "count":
        from percent_ray.study.count import count

        lines = count(arguments.answers, arguments.key)
    else:
        from percent_ray.study.page import Design, make

        names = ("pairs", "images", "seed", "size", "consent")
        design = Design(**{name: getattr(arguments, name) for name in names})
        rows = arguments.row_a, arguments.row_b
        lines = make(*rows, design, evaluation=arguments.evaluation, folder=arguments.to)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
