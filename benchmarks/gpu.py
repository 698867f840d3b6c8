"""Images a second, seconds by stage, memory and bf16 utilisation of SD3.5-M at its real size.

    python benchmarks/gpu.py            on a GPU: published sizes, random weights, no network
    python benchmarks/gpu.py --tiny     anywhere: the same code on a network of a few layers

One process, the roles of `runtime: local`: one group is sampled (10 steps, guidance 4.5), perceived
three ways (noisy decodes of all trained steps, of 3 steps, and the marginal form, which decodes
finished images only) and learned from. Weights are random: nothing here depends on their values.
Prints one JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from percent_ray.learn.engine import TorchEngine
from percent_ray.models import lora
from percent_ray.models.base import Condition, best_device
from percent_ray.models.decoder import VaeDecoder
from percent_ray.models.sd3 import StableDiffusion3
from percent_ray.objective.grpo import Weights
from percent_ray.objective.methods.marginal_pec import MarginalPec
from percent_ray.objective.methods.pec import Pec
from percent_ray.recipe.tree import Data, Model, Perceptual, Recipe, Runtime, Sampling
from percent_ray.recipe.tree import Learner as LearnerConfig
from percent_ray.roles.learner import Learner
from percent_ray.roles.perception import PerceptionWorker
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.scorers.base import Report
from percent_ray.types import Prompt, ShapedBatch, ShapedRow, Trajectory

TRANSFORMER: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
"""SD3.5-M's published config."""
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""SD3's published VAE."""
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
TOKENS = 77 + 128
"""Text tokens: CLIP's and Flow-GRPO's 128 of T5."""


class RandomText(StableDiffusion3):
    """The policy with text embeddings of the real shapes and random values: no text encoders."""

    def encode(self, texts: Sequence[str]) -> Condition:
        config = self._network.config
        shape = {
            "prompt_embeds": (TOKENS, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }
        both = shape | {f"negative_{name}": size for name, size in shape.items()}
        return {
            name: torch.randn(len(texts), *size, device=self._device, dtype=self.dtype)
            for name, size in both.items()
        }


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


TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "dual_attention_layers": (0,),
    },
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    "tower": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    },
}
"""What `--tiny` changes."""


@dataclass(frozen=True)
class Models:
    recipe: Recipe
    policy: RandomText
    decoder: VaeDecoder
    scorer: RandomPickScore


def build(tiny: bool, group: int) -> Models:
    """Everything on the device with random weights, in bf16 on a GPU and float32 on a CPU."""
    device = best_device()
    changes = TINY if tiny else {"transformer": {}, "vae": {}, "tower": {}}
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    recipe = Recipe(
        model=Model(resolution=64 if tiny else 512, dtype=dtype),
        sampling=Sampling(group_size=group, batch_size=group),
        learner=LearnerConfig(micro_batch=group // 2),
        data=Data(groups_per_step=1),
        runtime=Runtime(backend="local", max_staleness=0),
    )
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        transformer: Any = SD3Transformer2DModel(**TRANSFORMER | changes["transformer"])
        vae = AutoencoderKL(**VAE | changes["vae"])
        vision = CLIP_H["vision_config"] | changes["tower"]
        tower: Any = CLIPModel(CLIPConfig(**CLIP_H | {"vision_config": vision}))
    torch.set_default_dtype(torch.float32)
    model = recipe.model
    lora.add(
        transformer.cpu(),
        rank=model.lora_rank,
        alpha=model.lora_alpha,
        targets=model.lora_targets,
        seed=recipe.run.seed,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    height, width = model.size
    policy = RandomText(
        model,
        transformer.to(device),
        scheduler,
        None,
        latent_shape=(transformer.config.in_channels, height // 8, width // 8),
        patch=transformer.config.patch_size,
        cfg=model.guidance,
        device=device,
    )
    decoder = VaeDecoder(vae.requires_grad_(False))
    return Models(recipe, policy, decoder, RandomPickScore(tower, 224, device))


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """The last result, the least seconds over `repeats` calls after a first one, peak GiB."""
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


def velocity_flops(policy: RandomText, images: int) -> float:
    """FLOPs of one conditional and one unconditional pass over `images` latents."""
    latents = torch.randn(images, *policy.latent_shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.velocity(latents, torch.full((images,), 0.5), policy.encode(["a prompt"]))
    return float(counter.get_total_flops())


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


def measure(tiny: bool, group: int, repeats: int) -> dict[str, Any]:
    models = build(tiny, group)
    device = best_device()
    prompt = Prompt("a photo of a red circle")
    rollout = RolloutWorker(models.recipe, worker="benchmark", policy=models.policy)
    trajectory, sample_s, sample_gib = timed(lambda: rollout.sample(0, prompt, 0), repeats)
    perceive_s, perceive_gib = perceive(models, trajectory, repeats)
    update_s, update_gib = update(models, trajectory, repeats)
    peak = matrix_rate(device, 8192 if device.type == "cuda" else 1024)
    forward = velocity_flops(models.policy, group)
    # A replay is both passes forward, and a backward through the conditional one: the gradient of
    # its activations costs a forward, that of the frozen weights is not computed.
    update_flops = len(trajectory.steps) * (forward + forward / 2)
    sample_flops = models.recipe.sampling.steps * forward
    memory = {"sample": sample_gib, "perceive": perceive_gib, "update": update_gib}
    return {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "tiny": tiny,
        "resolution": models.recipe.model.resolution,
        "group": group,
        "images_per_s": round(group / (sample_s + perceive_s["all_steps"] + update_s), 4),
        "sample_s": round(sample_s, 3),
        "perceive_s": {name: round(seconds, 3) for name, seconds in perceive_s.items()},
        "update_s": round(update_s, 3),
        "peak_gib": {stage: round(gib, 1) for stage, gib in memory.items()},
        "matrix_tflops": round(peak / 1e12, 2),
        "sample_utilisation": round(sample_flops / sample_s / peak, 3),
        "update_utilisation": round(update_flops / update_s / peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tiny", action="store_true", help="a network of a few layers, any machine"
    )
    parser.add_argument("--group", type=int, default=24, help="images of the group, even")
    parser.add_argument("--repeats", type=int, default=2, help="timed calls after a first one")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; --tiny runs the same code on a network of a few layers")
    print(json.dumps(measure(arguments.tiny, arguments.group, arguments.repeats)))


if __name__ == "__main__":
    main()
