"""Can the embedded world's model learn which of two shapes lies where, from right pictures?

    python -m benchmarks.order

GenEval's position prompts ask for an order, and a reward can only choose among what is drawn. Here
nothing has to be found: the transformer that RL trains, its text encoders frozen as in RL, is
trained by flow matching on drawn scenes that all pass the rules. Prints, before and as it goes, of
384 pictures of held-out position prompts: the share that is right, and of those with both shapes
the share with the right place. Seven minutes of one core.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import percent_ray
from jobs.pretrain_shapes import flow
from jobs.pretrain_shapes.common import to_pixels
from jobs.pretrain_shapes.vae import decoded_of
from percent_ray.scorers.geneval import failure
from percent_ray.shapes import scenes
from percent_ray.shapes.detect import detect

SHAPES = Path(percent_ray.__file__).parent / "shapes"
SCENES, BATCH, LR, PICTURES, ODE_STEPS = 8000, 64, 3e-4, 384, 10
SEED = 50
"""Of scenes that neither pretraining nor its held-out sets have drawn."""


def main() -> None:
    """Train and print a JSON line every `--every` steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--every", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pipe = flow.load(SHAPES / "weights" / "sd3")
    records = held_out()
    latents, ids = examples(pipe)
    transformer = pipe.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=LR, betas=(0.9, 0.99))
    say(0, pipe, records)
    for step in range(1, args.steps + 1):
        optimizer.param_groups[0]["lr"] = LR * min(1.0, step / 50) * (1 - 0.9 * step / args.steps)
        picked = torch.randint(len(latents), (BATCH,))
        clean, noise = latents[picked], torch.randn_like(latents[picked])
        t = torch.randn(BATCH).sigmoid()
        with torch.no_grad():
            words = flow.condition(pipe, ids[picked])
        predicted = flow.velocity(transformer, flow.mixed(clean, noise, t), t, *words)
        optimizer.zero_grad()
        functional.mse_loss(predicted, noise - clean).backward()
        optimizer.step()
        if step % args.every == 0:
            say(step, pipe, records)


def held_out() -> list[scenes.Metadata]:
    """Records of the pictures that are looked at."""
    lines = (SHAPES / "prompts" / "test.jsonl").read_text().splitlines()
    asked = [record for record in map(json.loads, lines) if record["tag"] == "position"]
    return (asked * PICTURES)[:PICTURES]


def examples(pipe: flow.StableDiffusion3Pipeline) -> tuple[Tensor, Tensor]:
    """Of drawn scenes of positions: latents float32 [N, C, 8, 8], token ids int64 [N, 12]."""
    images, records = scenes.dataset(SCENES, SEED, "position")
    latents = [flow.encode(pipe.vae, images[i : i + 500]) for i in range(0, SCENES, 500)]
    return torch.cat(latents), flow.token_ids(pipe, [record["prompt"] for record in records])


@torch.no_grad()
def say(step: int, pipe: flow.StableDiffusion3Pipeline, records: Sequence[scenes.Metadata]) -> None:
    """Draw a picture of each record by the ODE, from the same noise at every step."""
    source = torch.Generator().manual_seed(3)
    config = pipe.vae.config
    sigmas = torch.linspace(1, 0, ODE_STEPS + 1)
    failed: list[str] = []
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        words = flow.condition(pipe, flow.token_ids(pipe, [r["prompt"] for r in part]))
        x = torch.randn(len(part), config["latent_channels"], 8, 8, generator=source)
        for sigma, after in pairwise(sigmas):
            v = flow.velocity(pipe.transformer, x, sigma.expand(len(part)), *words)
            x = x + (after - sigma) * v
        images = decoded_of(pipe.vae, x / config["scaling_factor"] + config["shift_factor"])
        pixels = torch.from_numpy(to_pixels(images))
        failed += [failure(detect(image), r) for image, r in zip(pixels, part, strict=True)]
    right, misplaced = failed.count(""), failed.count("position")
    line = {
        "pictures learned from": step * BATCH,
        "right": right / len(failed),
        "place right, of those with both shapes": right / max(right + misplaced, 1),
    }
    print(json.dumps({k: round(v, 3) for k, v in line.items()}), flush=True)


if __name__ == "__main__":
    main()
