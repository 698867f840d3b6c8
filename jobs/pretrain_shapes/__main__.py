"""Rebuild the embedded world's models: scenes are drawn, models trained, quality reported."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Final

# `python jobs/pretrain_shapes` puts this folder here, and not the repository that `jobs` is in.
sys.path[0] = str(Path(__file__).parents[2])

from percent_ray import job  # noqa: E402

TRAININGS: Final = {
    "vae": ("sd3/vae", 0, 3300),
    "tiny": ("tiny", 10, 8000),
    "flow": ("sd3", 0, 16000),
    "distill": ("sd3", 50, 1500),
    "clip": ("clip", 30, 1000),
    "pickscore": ("pickscore", 40, 3000),
    "judge": ("judge", 60, 3000),
    "dino": ("dino", 20, 1000),
}
"""Folder of the weights, seed and steps of each training."""
MOST: Final = 10**9
"""Steps and threads."""
PARTS: Final = ("prompts", *TRAININGS, "report")
"""In the order that they need each other."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = job.Parser(prog="python -m jobs.pretrain_shapes", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/shapes"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="added to each model's own seed")
    parser.add_argument("--steps", type=_positive, help="training steps of each chosen model")
    parser.add_argument("--threads", type=_positive, default=2, help="torch threads")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := sorted(set(arguments.only) - set(PARTS)):
        parser.error(f"--only has no {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if not 0 <= arguments.seed < 2**31:
        parser.error(f"--seed {arguments.seed}: give 0 or more, below 2**31")
    return arguments


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:12]) < MOST:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0 and below {MOST:,}")
    return int(text)


def train(part: str, weights: Path, *, seed: int, steps: int | None) -> None:
    """Trains one of TRAININGS; ``seed`` is added to its own, ``steps`` stand in for its own."""
    import torch
    from diffusers import AutoencoderKL

    from jobs.pretrain_shapes import clip, dino, flow, preferences, tiny, vae

    name, own_seed, own_steps = TRAININGS[part]
    folder, seed, steps = weights / name, own_seed + seed, steps or own_steps
    if part == "tiny":
        autoencoder = AutoencoderKL.from_pretrained(weights / "sd3/vae", dtype=torch.float32)
        tiny.train(folder, autoencoder=autoencoder, seed=seed, steps=steps)
    elif part in ("pickscore", "judge"):
        # Half the steps on captions, half on preferences. The judge has the same taste, from other
        # scenes and pairs: it is for evaluation, and no policy is trained on it.
        autoencoder = AutoencoderKL.from_pretrained(weights / "sd3/vae", dtype=torch.float32)
        clip.train(folder, seed=seed, steps=steps // 2)
        preferences.train(folder, vae=autoencoder, seed=seed, steps=steps // 2)
    elif part == "distill":
        flow.distill(folder, seed=seed, steps=steps)
    else:
        trainer = {"vae": vae, "flow": flow, "clip": clip, "dino": dino}[part]
        trainer.train(folder, seed=seed, steps=steps)


def main() -> None:
    job.run(pretrain)


def pretrain() -> None:
    """Does what ``--only`` names, in the order of PARTS."""
    arguments = parse()
    # Threads that spin while they wait cost three times the time on a machine that others use.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from jobs.pretrain_shapes import prompts, report

    torch.set_num_threads(arguments.threads)
    weights = arguments.out / "weights"
    for part in (part for part in PARTS if part in arguments.only):
        if part == "prompts":
            prompts.write(arguments.out / "prompts", arguments.seed)
        elif part == "report":
            quality = json.dumps(report.measure(weights), indent=2)
            (arguments.out / "quality.json").write_text(quality + "\n")
            print(quality)
        else:
            train(part, weights, seed=arguments.seed, steps=arguments.steps)


if __name__ == "__main__":
    main()
