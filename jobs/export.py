"""Export what a run has trained: a LoRA, a whole pipeline, or a file for ComfyUI."""

import argparse
import sys
from pathlib import Path

from percent_ray import job

USAGE = """\
python jobs/export.py RUN --to FOLDER [--merged] [--ema | --raw] [--step N]
                             [--format diffusers|comfyui]

examples
  python jobs/export.py runs/NAME --to exports/lora
      the LoRA of the newest checkpoint, for the diffusers pipeline's load_lora_weights
  python jobs/export.py runs/NAME --to exports/merged --merged
      a whole pipeline with the LoRA folded in, for DiffusionPipeline.from_pretrained
  python jobs/export.py runs/NAME/checkpoints/step-00000040 --to exports/comfy --format comfyui
      one file of that checkpoint, for ComfyUI's models/loras

A run that trained every weight (model.lora_rank 0) has no LoRA: it is exported as a pipeline. The
pipeline is a copy in the dtypes of model.path, and stands alone. At the end come the lines that
load what was written.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    parser.add_argument("run", metavar="RUN", help="a run's folder, or one of its checkpoints")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="a folder that is new or empty"
    )
    parser.add_argument(
        "--merged", action="store_true", help="the whole pipeline, not the LoRA alone"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--ema",
        dest="average",
        action="store_true",
        default=None,
        help="the weights' moving average, which is what is exported where the run has one",
    )
    which.add_argument(
        "--raw", dest="average", action="store_false", help="the trained weights in its place"
    )
    parser.add_argument("--step", type=int, metavar="N", help="of the checkpoint; the newest")
    parser.add_argument(
        "--format",
        choices=("diffusers", "comfyui"),
        default="diffusers",
        help="of the LoRA; a pipeline is diffusers'",
    )
    return parser.parse_args(argv)


def main() -> None:
    job.run(export)


def export() -> None:
    arguments = parse(sys.argv[1:])
    from percent_ray.export import write
    from percent_ray.export.source import read

    source = read(arguments.run, step=arguments.step, average=arguments.average)
    options = {"merged": arguments.merged, "form": arguments.format}
    print("\n".join(write.export(source, arguments.to, **options)))


if __name__ == "__main__":
    main()
