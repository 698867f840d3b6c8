"""Compare the verdicts of two GenEval detectors, picture by picture."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from percent_ray import job

if TYPE_CHECKING:
    from torch import Tensor

    from percent_ray.types import Prompt

USAGE = """\
python jobs/calibrate_detector.py [--first PATH] [--second PATH] [--noise N]
                                  [--evaluation EVAL --row ROW | --pictures N]

examples
  python jobs/calibrate_detector.py --noise 15
      the embedded world's detector against itself on noisy copies of 600 drawn scenes
  python jobs/calibrate_detector.py --evaluation runs/geneval --row SD3.5-M \\
          --first facebook/mask2former-swin-small-coco-instance --second DETECTOR
      two detectors on the pictures that an evaluation of GenEval's prompts has kept (--keep)

Prints for each task how many pictures are right by either detector, how often both say the same,
and Cohen's kappa: agreement beyond chance, which .8 and more calls good. Nothing is written.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    for name, other in (("first", "the embedded one"), ("second", "the first one")):
        parser.add_argument(
            f"--{name}",
            default=None,
            metavar="PATH",
            help=f"Mask2Former, folder or hub id ({other})",
        )
    parser.add_argument("--color-path", default="", metavar="PATH", help="CLIP that names colours")
    parser.add_argument(
        "--noise", type=float, default=0.0, metavar="N", help="levels of 255 for the second one (0)"
    )
    parser.add_argument("--evaluation", type=Path, metavar="EVAL", help="folder of kept pictures")
    parser.add_argument("--row", metavar="ROW", help="its label, slug or folder")
    parser.add_argument("--pictures", type=int, default=600, metavar="N", help="drawn scenes (600)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of scenes and noise (0)")
    asked = parser.parse_args(argv)
    if (asked.evaluation is None) != (asked.row is None):
        raise ValueError("--evaluation and --row belong together; set both or none")
    if not 1 <= asked.pictures <= 10**6 or asked.seed < 0 or not 0 <= asked.noise <= 255:
        raise ValueError("--pictures needs 1 to 1,000,000, --seed 0 or more, --noise 0 to 255")
    if asked.second is None and not asked.noise:
        raise ValueError("the second detector is the first one; set --second or --noise")
    return asked


def main() -> None:
    job.run(lambda: print("\n".join(compare(parse(sys.argv[1:])))))


def compare(asked: argparse.Namespace) -> list[str]:
    """The table's lines."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from percent_ray.evaluation import agreement
    from percent_ray.models.base import best_device
    from percent_ray.scorers import geneval

    def load(path: str) -> geneval.GenEval:
        colors = asked.color_path if path else ""
        return geneval.load(path, color_path=colors, device=best_device())

    groups = list(pictures(asked))
    first = load(asked.first or "")
    second = first if asked.second is None else load(asked.second)
    tasks: list[str] = []
    verdicts: list[tuple[list[float], list[float]]] = []
    for number, (prompt, images) in enumerate(
        track(groups, "detecting", console=Console(stderr=True), transient=True)
    ):
        prompts = [prompt] * len(images)
        seen = images
        if asked.noise:
            seen = agreement.noisy(images, asked.noise, seed=asked.seed + number)
        one, other = first.report(images, prompts), second.report(seen, prompts)
        tasks += one.tasks or ()
        verdicts.append((one.values.tolist(), other.values.tolist()))
    mine, theirs = (
        np.array([value > 0 for pair in verdicts for value in pair[side]]) for side in (0, 1)
    )
    noise = f", noise {asked.noise:g} of 255" if asked.noise else ""
    lines = [
        f"first   {first.describe()}",
        f"second  {second.describe()}{noise}",
        "",
        f"{'task':<14} {'pictures':>8} {'first':>7} {'second':>7} {'agree':>7} {'kappa':>7}",
    ]
    for task, found in agreement.by_task(tasks, mine, theirs).items():
        lines.append(
            f"{task:<14} {found.pictures:>8} {found.first:>7.1%} {found.second:>7.1%} "
            f"{found.agreed:>7.1%} {found.kappa:>7.2f}"
        )
    return lines


def pictures(asked: argparse.Namespace) -> "Iterator[tuple[Prompt, Tensor]]":
    """Prompts with pictures uint8 [K, 3, H, W]."""
    from percent_ray.evaluation import agreement

    if asked.evaluation is None:
        yield from agreement.scenes(asked.pictures, asked.seed)
        return
    import torch

    from percent_ray.data.prompts import read_prompts
    from percent_ray.evaluation.pictures import read
    from percent_ray.study.rows import find

    prompts = read_prompts(asked.evaluation / "prompts.jsonl")
    row = find(asked.row, asked.evaluation)
    for number, files in sorted(row.pictures.items()):
        if number >= len(prompts):
            raise ValueError(f"{asked.row} has pictures of prompt {number}, of {len(prompts)}")
        if not files:
            folder = row.folder / "pictures" / f"{number:05d}"
            raise ValueError(
                f"{folder} holds no pictures; delete it and run jobs/evaluate.py again with --keep"
            )
        yield prompts[number], torch.from_numpy(read(files))


if __name__ == "__main__":
    main()
