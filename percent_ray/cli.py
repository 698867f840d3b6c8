"""The `percent_ray` command: says what is installed and where to begin."""

import argparse
import importlib.metadata
from collections.abc import Sequence

JOBS = """\
jobs, run from a checkout of the repository:
  python jobs/train_pec.py         train; without arguments the embedded PEC recipe
  python jobs/train_pec.py --help  every key of a recipe with its default and meaning
  python jobs/pretrain_shapes.py   rebuild the embedded world's models

on a Ray cluster:
  ray job submit --working-dir . -- python jobs/train_pec.py
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the version or the help."""
    parser = argparse.ArgumentParser(
        prog="percent_ray",
        description="Flow RL that measures diversity while it trains, and keeps it.",
        epilog=JOBS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("percent_ray")
    parser.add_argument("--version", action="version", version=f"percent_ray {version}")
    parser.parse_args(argv)
    parser.print_help()
