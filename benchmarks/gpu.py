"""Images a second, seconds by stage, memory, bf16 utilisation and the ratio's floor of SD3.5-M or
FLUX.1-dev at its real size.

    python benchmarks/gpu.py --family sd3|flux     on a GPU: published sizes, random weights
    python benchmarks/gpu.py --family flux --tiny  anywhere: the same code on a few small layers

One process, the roles of `runtime: local`, the model and sampling of the family's shipped recipe:
one group is sampled, perceived three ways (noisy decodes of all trained steps, of 3 steps, and the
marginal form, which decodes finished images only) and learned from. No network is needed, and
nothing here depends on the values of the weights but the floor (`benchmarks/floor.py`). Prints one
JSON line.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from floor import PROMPT, RECIPES, floor, random_policy, read
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from percent_ray.learn.engine import TorchEngine
from percent_ray.models import published
from percent_ray.models.base import best_device
from percent_ray.models.decoder import VaeDecoder
from percent_ray.objective.grpo import Weights
from percent_ray.objective.methods.marginal_pec import MarginalPec
from percent_ray.objective.methods.pec import Pec
from percent_ray.preview import meta
from percent_ray.preview.stages import BACKWARD
from percent_ray.recipe.tree import Perceptual, Recipe
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt, ShapedBatch, ShapedRow, Trajectory

CLIP_H: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "projection_dim": 1024,
}
"""The image tower of PickScore (CLIP ViT-H/14); its text tower runs once a prompt and is left
small."""
SMALL_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SMALL_VAE = {"block_out_channels": [32] * 4, "layers_per_block": 1}
SMALL: dict[str, dict[str, Any]] = {
    "sd3": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "dual_attention_layers": [0],
    },
    "flux": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
    },
}
"""What `--tiny` changes, by family; the two above are of both."""


class RandomPickScore:
    """A `Scorer` with PickScore's image tower; its score is a cosine with a fixed direction."""

    def __init__(self, tower: Any, size: int, device: torch.device) -> None:
        self._tower = tower.to(device).eval().requires_grad_(False)
        self._processor = CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
        self._device = device

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._processor(images, return_tensors="pt", device=self._device).pixel_values
        found = self._tower.get_image_features(pixels.to(self._device, self._tower.dtype))
        features = found if isinstance(found, torch.Tensor) else found.pooler_output
        return features.float().cpu()

    def score(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        return torch.nn.functional.normalize(self.encode(images), dim=-1)[:, 0]

    def report(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Report:
        return Report(self.score(images, prompts), "cosine")

    def describe(self) -> str:
        return "PickScore's image tower, random weights"


@dataclass(frozen=True)
class Models:
    recipe: Recipe
    policy: Any
    decoder: VaeDecoder
    scorer: RandomPickScore


MICRO_BATCH = {"sd3": 8, "flux": 3}


def build(family: str, folder: Path, group: int, *, tiny: bool, compiled: bool) -> Models:
    """Everything on the device with random weights, in bf16 on a GPU and float32 on a CPU."""
    device = best_device()
    overrides = {
        "model.dtype": "bfloat16" if device.type == "cuda" else "float32",
        "model.compile": compiled,
        "model.resolution": 64 if tiny else 512,
        "sampling.group_size": group,
        "sampling.batch_size": group,
        "objective.kl": 0,
        "learner.micro_batch": MICRO_BATCH[family],
        "learner.updates": 1,
        "data.groups_per_step": 1,
        "runtime.learner.workers": 1,
        "runtime.backend": "local",
    }
    recipe = read(RECIPES[family], overrides)
    vae_config = published.PIPELINES[recipe.model.path]["vae/config.json"]
    vision = CLIP_H["vision_config"] | (SMALL_TOWER if tiny else {})
    policy = random_policy(recipe, folder, SMALL[family] if tiny else {})
    with device:
        vae: Any = AutoencoderKL.from_config({**vae_config, **(SMALL_VAE if tiny else {})})
        tower: Any = CLIPModel(CLIPConfig(**CLIP_H | {"vision_config": vision}))
    decoder: Any = VaeDecoder(vae.to(policy.dtype).eval().requires_grad_(False))
    decoder.describe = lambda: "decoder: random weights"
    return Models(recipe, policy, decoder, RandomPickScore(tower.to(policy.dtype), 224, device))


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """The last result, the least seconds over `repeats` calls after a first one, and the peak GiB
    of a GPU, else 0."""
    cuda = torch.cuda.is_available()
    result = work()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def matrix_rate(device: torch.device, size: int) -> float:
    """Measured FLOP/s of a square bf16 matrix product (float32 on a CPU)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    _, seconds, _ = timed(lambda: [a @ a for _ in range(10)], repeats=5)
    return 10 * 2 * size**3 / seconds


def velocity_flops(models: Models, images: int) -> float:
    """FLOPs of one guided velocity of as many latents."""
    policy = models.policy
    latents, condition = torch.randn(images, *policy.latent_shape), policy.encode(["a prompt"])
    return meta.flops(lambda: policy.velocity(latents, torch.full((images,), 0.5), condition))


FORMS: dict[str, dict[str, Any]] = {
    "all_steps": {"method": Pec()},
    "3_steps": {"method": Pec(), "perceptual": Perceptual(steps=3)},
    "marginal": {
        "method": MarginalPec(),
        "perceptual": Perceptual(measure=False),
    },
}
"""Ways to perceive: noisy decodes of every trained step, of three, and of none."""


def perceive(
    models: Models, trajectory: Trajectory, repeats: int
) -> tuple[dict[str, float], float]:
    """Seconds of each form, and the largest peak GiB."""
    seconds: dict[str, float] = {}
    largest = 0.0
    for name, form in FORMS.items():
        recipe = models.recipe.model_copy(update=form)
        worker = PerceptionWorker(
            recipe,
            worker="benchmark",
            decoder=models.decoder,
            scorers={"pickscore": models.scorer},
        )
        scored = tuple(trajectory.steps)[: recipe.perceptual.steps or None]

        def work(p: PerceptionWorker = worker, scored: tuple[int, ...] = scored) -> Any:
            return p.perceive(replace(trajectory, scored=scored), pictures=False)

        _, seconds[name], gib = timed(work, repeats)
        largest = max(largest, gib)
    return seconds, largest


def update(models: Models, group: Trajectory, repeats: int) -> tuple[float, float]:
    """Seconds of one learner step on the group, and its peak GiB."""
    learner = Learner(
        models.recipe, models.policy, TorchEngine(models.recipe.learner, models.policy)
    )
    advantage = torch.linspace(-1, 1, group.payload.num_rows).unsqueeze(-1)
    weights = Weights(advantage.repeat(1, len(group.steps)))

    def work() -> Any:
        row = ShapedRow(0, learner.version, group.payload, group.condition, weights)
        return learner.update(ShapedBatch(learner.version, (row,)))

    _, seconds, gib = timed(work, repeats)
    return seconds, gib


def measure(models: Models, repeats: int) -> dict[str, Any]:
    device, recipe, policy = best_device(), models.recipe, models.policy
    rollout = RolloutWorker(recipe, worker="benchmark", policy=policy)
    trajectory, sample_s, sample_gib = timed(lambda: rollout.sample(0, PROMPT, 0), repeats)
    perceive_s, perceive_gib = perceive(models, trajectory, repeats)
    drawn = recipe.objective.model_copy(update={"old_log_prob": "drawn"})
    largest, outside = floor(recipe.model_copy(update={"objective": drawn}), policy, trajectory)
    update_s, update_gib = update(models, trajectory, repeats)
    peak = matrix_rate(device, 8192 if device.type == "cuda" else 1024)
    group = recipe.sampling.group_size
    forward = velocity_flops(models, group)
    # The branch without gradients has no backward pass.
    guided = "negative_prompt_embeds" in policy.condition_shapes()
    update_flops = len(trajectory.steps) * forward * (1 + BACKWARD / (2 if guided else 1))
    sample_flops = recipe.sampling.steps * forward
    memory = {"sample": sample_gib, "perceive": perceive_gib, "update": update_gib}
    return {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "family": recipe.model.family,
        "compiled": recipe.model.compile,
        "dtype": recipe.model.dtype,
        "resolution": recipe.model.resolution,
        "group": group,
        "micro_batch": recipe.learner.micro_batch,
        "images_per_s": round(group / (sample_s + perceive_s["all_steps"] + update_s), 4),
        "sample_s": round(sample_s, 3),
        "perceive_s": {name: round(seconds, 3) for name, seconds in perceive_s.items()},
        "update_s": round(update_s, 3),
        "peak_gib": {stage: round(gib, 1) for stage, gib in memory.items() if gib},
        "matrix_tflops": round(peak / 1e12, 2),
        "sample_utilisation": round(sample_flops / sample_s / peak, 3),
        "update_utilisation": round(update_flops / update_s / peak, 3),
        "floor": {"largest": largest, "outside_1e-4": outside},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=RECIPES, default="sd3", help="of the model")
    parser.add_argument("--tiny", action="store_true", help="a few small layers, any machine")
    parser.add_argument("--compile", action="store_true", help="with model.compile")
    parser.add_argument("--group", type=int, default=24, help="images of it, a multiple of 24")
    parser.add_argument("--repeats", type=int, default=2, help="timed calls after a first one")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; --tiny runs the same code on a few small layers")
    options = {"tiny": asked.tiny, "compiled": asked.compile}
    with tempfile.TemporaryDirectory() as folder:
        models = build(asked.family, Path(folder), asked.group, **options)
        print(json.dumps({"tiny": asked.tiny} | measure(models, asked.repeats)))


if __name__ == "__main__":
    main()
