"""Rebuild the embedded world's models: scenes are drawn, models trained, quality reported."""

import argparse
import json
import os
import sys
from pathlib import Path

PARTS = ("prompts", "vae", "flow", "distill", "clip", "pickscore", "dino", "report")
STEPS = {"vae": 3300, "flow": 16000, "distill": 1500, "clip": 1000, "pickscore": 3000, "dino": 1000}
SEEDS = {"vae": 0, "flow": 0, "distill": 50, "clip": 30, "pickscore": 40, "dino": 20}


GUIDANCE = 3.0
"""Classifier-free guidance that is distilled into the flow model."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/shapes"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="added to each model's own seed")
    parser.add_argument("--steps", type=int, help="training steps of each chosen model")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := sorted(set(arguments.only) - set(PARTS)):
        parser.error(f"--only has no {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    return arguments


def train(part: str, weights: Path, seed: int, steps: int) -> None:
    """Trains one model into ``weights``."""
    if part == "pickscore":
        train_pickscore(weights, seed, steps)
        return
    from importlib import import_module

    if part == "distill":
        from percent_ray.shapes.pretrain.flow import distill

        distill(weights / "sd3", seed=seed, steps=steps, guidance=GUIDANCE)
        return
    module = import_module(f"percent_ray.shapes.pretrain.{part}")
    folder = weights / ("sd3/vae" if part == "vae" else "sd3" if part == "flow" else part)
    module.train(folder, seed=seed, steps=steps)


def train_pickscore(weights: Path, seed: int, steps: int) -> None:
    """Half the steps on captions, half on preferences; needs the autoencoder."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPModel

    from percent_ray.shapes.pretrain import clip, preferences

    folder = weights / "pickscore"
    vae = AutoencoderKL.from_pretrained(weights / "sd3/vae", dtype=torch.float32)
    clip.train(folder, seed=seed, steps=steps // 2)
    start = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    preferences.train(folder, start=start, vae=vae, seed=seed, steps=steps // 2)


def main() -> None:
    """Trains what ``--only`` names, in the order that they need each other."""
    arguments = parse()
    # Threads that spin while they wait cost three times the time on a machine that others use.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from percent_ray.shapes.pretrain import prompts, report

    torch.set_num_threads(arguments.threads)
    weights = arguments.out / "weights"
    try:
        for part in (part for part in PARTS if part in arguments.only):
            if part == "prompts":
                prompts.write(arguments.out / "prompts", arguments.seed)
            elif part == "report":
                found = report.measure(weights)
                text = json.dumps(found, indent=2)
                (arguments.out / "quality.json").write_text(text + "\n")
                print(text)
            else:
                steps = arguments.steps or STEPS[part]
                train(part, weights, SEEDS[part] + arguments.seed, steps)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
