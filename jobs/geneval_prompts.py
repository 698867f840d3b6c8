"""Make training prompts of GenEval's form, none of which is one of the benchmark's own."""

import argparse
import json
import sys
from pathlib import Path

from percent_ray import job

USAGE = """\
python jobs/geneval_prompts.py --to FILE.jsonl [--count N] [--shares TASK=PARTS,...] [--seed N]
                               [--held-out FILE.jsonl]

examples
  python jobs/geneval_prompts.py --to geneval_train.jsonl
      20,000 prompts of GenEval's words, without its 553
  python jobs/geneval_prompts.py --to train.jsonl --shares position=7,counting=5,color_attr=3
      other parts of the tasks; a task that is not named has none

Objects, colours, relations and counts are those of the prompts that are held out. Train on FILE
(--data.prompts FILE), report scores on the held-out ones.
"""
HELD_OUT = Path(__file__).parent / "recipes" / "prompts" / "geneval_553.jsonl"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    parser.add_argument("--to", type=Path, required=True, help="the file, which is new")
    parser.add_argument("--count", type=int, default=20_000, help="prompts in all, about")
    parser.add_argument("--shares", type=_shares, help="parts of the prompts by task")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument(
        "--held-out", type=Path, default=HELD_OUT, help="the benchmark's own prompts"
    )
    return parser.parse_args(argv)


def _shares(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        task, _, parts = part.partition("=")
        if not parts.isdecimal() or task in found:
            raise argparse.ArgumentTypeError(f"{part!r} is no TASK=PARTS such as position=7")
        found[task] = int(parts)
    if not any(found.values()):
        raise argparse.ArgumentTypeError(f"{text!r} has no part above 0")
    return found


def main() -> None:
    job.run(make)


def make() -> None:
    arguments = parse(sys.argv[1:])
    from percent_ray.data import geneval_prompts

    if not 1 <= arguments.count <= 10_000_000:
        raise ValueError(f"--count {arguments.count}: give 1 to 10,000,000")
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: give 0 or more")
    if arguments.to.exists():
        raise ValueError(f"--to: {arguments.to} is there; give a new file")
    if not arguments.to.absolute().parent.is_dir():
        raise ValueError(f"--to: no folder {arguments.to.absolute().parent}; make it")
    made = geneval_prompts.make(
        geneval_prompts.read(arguments.held_out),
        count=arguments.count,
        shares=arguments.shares or geneval_prompts.SHARES,
        seed=arguments.seed,
    )
    with arguments.to.open("x", encoding="utf-8") as file:
        for records in made.values():
            file.writelines(json.dumps(record) + "\n" for record in records)
    for task, records in made.items():
        distinct = len({record["prompt"] for record in records})
        print(f"{task:<14} {len(records):>7} prompts, {distinct} of them different")
    print(f"{arguments.to}: {sum(map(len, made.values()))} prompts; none of {arguments.held_out}")


if __name__ == "__main__":
    main()
