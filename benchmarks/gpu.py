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
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from percent_ray.config import Learner as LearnerConfig
from percent_ray.config import Model, Perceptual, Recipe, Runtime, Sampling
from percent_ray.learn.engine import TorchEngine
from percent_ray.learn.learner import Learner
from percent_ray.models import lora
from percent_ray.models.base import Condition
from percent_ray.models.parts import VaeDecoder
from percent_ray.models.sd3 import StableDiffusion3
from percent_ray.runtime.device import best_device
from percent_ray.runtime.perception import Perceiver
from percent_ray.runtime.rollout import Rollout
from percent_ray.types import Prompt, ShapedBatch, ShapedRow, Trajectory

TRANSFORMER = {
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
VAE = {
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
CLIP_H = {
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
        config = self._transformer.config
        shape = {
            "prompt_embeds": (TOKENS, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }
        both = shape | {f"negative_{name}": size for name, size in shape.items()}
        return {
            name: torch.randn(len(texts), *size, device=self._device, dtype=self._dtype)
            for name, size in both.items()
        }


class RandomPickScore:
    """A `Scorer` with PickScore's image tower; its score is a cosine with a fixed direction."""

    def __init__(self, tower: CLIPModel, size: int, device: torch.device) -> None:
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


def build(tiny: bool, group: int) -> tuple[Recipe, RandomText, VaeDecoder, RandomPickScore]:
    device = best_device()
    transformer_config, vae_config, clip_config = dict(TRANSFORMER), dict(VAE), dict(CLIP_H)
    resolution, pixels = 512, 224
    if tiny:
        transformer_config |= {
            "num_layers": 2,
            "num_attention_heads": 2,
            "caption_projection_dim": 128,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 64,
            "dual_attention_layers": (0,),
        }
        vae_config |= {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
        clip_config = {
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 14,
            },
            "projection_dim": 32,
        }
        resolution = 64
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    recipe = Recipe(
        model=Model(resolution=resolution, dtype=dtype),
        sampling=Sampling(group_size=group, batch_size=group),
        learner=LearnerConfig(micro_batch=group // 2),
        data={"groups_per_step": 1},
        runtime=Runtime(backend="local", max_staleness=0),
    )
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        transformer = SD3Transformer2DModel(**transformer_config)
        vae = AutoencoderKL(**vae_config)
        tower = CLIPModel(CLIPConfig(**clip_config))
        torch.set_default_dtype(torch.float32)
    model = recipe.model
    transformer.cpu()
    lora.add(
        transformer,
        rank=model.lora_rank,
        alpha=model.lora_alpha,
        targets=model.lora_targets,
        seed=recipe.run.seed,
    )
    policy = RandomText(
        model,
        transformer.to(device),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        None,
        side=resolution // 8,
        device=device,
    )
    return (
        recipe,
        policy,
        VaeDecoder(vae.requires_grad_(False)),
        RandomPickScore(tower, pixels, device),
    )


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


def measure(tiny: bool, group: int, repeats: int) -> dict[str, Any]:
    recipe, policy, decoder, scorer = build(tiny, group)
    device = best_device()
    prompt = Prompt("a photo of a red circle")
    rollout = Rollout(recipe, worker="benchmark", policy=policy)
    (bare, payload, condition), sample_s, sample_gib = timed(
        lambda: rollout.sample(0, prompt, 0), repeats
    )
    forms = {
        "all_steps": Perceptual(method="pec"),
        "3_steps": Perceptual(method="pec", steps=3),
        "marginal": Perceptual(method="pec", entropy="marginal", measure=False),
    }
    perceive: dict[str, float] = {}
    perceive_gib = 0.0
    for name, perceptual in forms.items():
        changed = recipe.model_copy(update={"perceptual": perceptual})
        perceiver = Perceiver(
            changed, worker="benchmark", decoder=decoder, scorers={"pickscore": scorer}
        )
        scored = tuple(bare.steps)[: perceptual.steps or None]
        trajectory: Trajectory = replace(bare, scored=scored)

        def work(p: Perceiver = perceiver, t: Trajectory = trajectory) -> Any:
            return p.perceive(t, payload, pictures=False)

        _, perceive[name], gib = timed(work, repeats)
        perceive_gib = max(perceive_gib, gib)
    learner = Learner(recipe, policy, TorchEngine(recipe.learner, policy))
    advantages = torch.linspace(-1, 1, group).numpy()

    def update() -> Any:
        row = ShapedRow(0, learner.version, payload, condition, advantages)
        batch = ShapedBatch(learner.version, learner.version, (row,))
        return learner.update(batch, [(payload, condition)])

    _, update_s, update_gib = timed(update, repeats)
    peak = matrix_rate(device, 8192 if device.type == "cuda" else 1024)
    forward = velocity_flops(policy, group)
    steps, trained = recipe.sampling.steps, len(bare.steps)
    # a replay is both passes forward and, through the conditional one, a backward of twice its cost
    # less the frozen weights' gradients: one more forward
    update_flops = trained * (forward + forward / 2)
    iteration_s = sample_s + perceive["all_steps"] + update_s
    return {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "tiny": tiny,
        "resolution": recipe.model.resolution,
        "group": group,
        "images_per_s": round(group / iteration_s, 4),
        "sample_s": round(sample_s, 3),
        "perceive_s": {name: round(seconds, 3) for name, seconds in perceive.items()},
        "update_s": round(update_s, 3),
        "peak_gib": {
            "sample": round(sample_gib, 1),
            "perceive": round(perceive_gib, 1),
            "update": round(update_gib, 1),
        },
        "matrix_tflops": round(peak / 1e12, 2),
        "sample_utilisation": round(steps * forward / sample_s / peak, 3),
        "update_utilisation": round(update_flops / update_s / peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
