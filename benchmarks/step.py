"""A whole training step in one process, against a plain-torch Flow-GRPO, as ratios.

    python benchmarks/step.py [--groups 2] [--repeats 7]

Both train a LoRA of the embedded world's SD3-class model on the same prompts, noise, rewards and
sizes, at guidance 1 and 4.5, without a method and with PEC. `Plain` is Flow-GRPO's loop written
down with diffusers, transformers and peft alone: guidance in one pass over twice the batch,
log-probs in float32, the clipped loss of one transition at a time, two optimizer steps. Text is
encoded before the clock starts.

First the two must agree: on rewards, losses and gradient norms of the first step, and on where it
moves the weights. Then steps alternate, and every ratio is the median over `repeats` of
ours / plain, of one thread's CPU time, which a busy machine disturbs least: below 1 ours is faster.
Prints one JSON line.
"""

import argparse
import asyncio
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from torch import Tensor
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from percent_ray.data.prompts import read_prompts
from percent_ray.flow import noise
from percent_ray.learn.batch import chunks
from percent_ray.objective.methods.flow_grpo import FlowGrpo
from percent_ray.objective.methods.pec import Pec
from percent_ray.recipe import load as recipes
from percent_ray.recipe.paths import locate, locate_prompts
from percent_ray.recipe.tree import Monitor, Perceptual, Recipe, Run, Runtime, Scorer
from percent_ray.runtime.local import Local
from percent_ray.shape import shape
from percent_ray.types import Prompt

RECIPE = Path(__file__).parents[1] / "jobs" / "recipes" / "shapes_flow_grpo.yaml"
STAGES = ("sampling", "perception", "update", "step")
TOLERANCE = 1e-4
"""Of rewards, losses and (relative) gradient norms. Of 1 - the cosine of the updates ten times as
much: Adam's first step takes a gradient's sign, also where that is rounding's."""


@dataclass(frozen=True)
class Step:
    """What one step has measured, for the comparison, and how long it took."""

    reward: float
    loss: float
    norm: float
    seconds: dict[str, float]


def settings(groups: int, guidance: float, pec: bool) -> Recipe:
    """The embedded recipe with nothing measured but what the method needs."""
    recipe = recipes.load(RECIPE)
    return recipe.model_copy(
        update={
            "run": Run(name="benchmark"),
            "model": recipe.model.model_copy(update={"guidance": guidance}),
            "scorers": {"pickscore": Scorer(path="shapes/pickscore", weight=1.0)},
            "method": Pec() if pec else FlowGrpo(),
            "perceptual": Perceptual(measure=False),
            "learner": recipe.learner.model_copy(update={"ema_decay": 0.0}),
            "data": recipe.data.model_copy(update={"groups_per_step": groups}),
            "monitor": Monitor(probe_every=0),
            "runtime": Runtime(backend="local", max_staleness=0),
        }
    )


class Ours:
    """The roles of `runtime.backend local`, called as the loop calls them."""

    def __init__(self, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
        self.recipe, self.prompts = recipe, prompts
        self.roles = asyncio.run(Local.start(recipe, first=prompts[0]))
        self.weights = self.roles.policy.trainable()
        for prompt in prompts:
            self.roles.rollout.sample(0, prompt, 0)  # its condition is kept

    def step(self) -> Step:
        roles, version = self.roles, self.roles.learner.version
        marks = [time.process_time()]
        drawn = [roles.rollout.sample(i, p, version) for i, p in enumerate(self.prompts)]
        marks.append(time.process_time())
        seen = [roles.perception.perceive(group, pictures=False) for group in drawn]
        batch, _, metrics = shape(self.recipe, version, list(zip(drawn, seen, strict=True)), {})
        marks.append(time.process_time())
        metrics |= roles.learner.update(batch).metrics
        marks.append(time.process_time())
        return Step(
            metrics["reward/mean"], metrics["loss/total"], metrics["grad/norm"], _seconds(marks)
        )


class Plain:
    """Flow-GRPO in plain torch."""

    def __init__(self, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
        model, learner = recipe.model, recipe.learner
        self.recipe, self.guidance = recipe, model.guidance
        absent: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
        pipe = StableDiffusion3Pipeline.from_pretrained(model.folder, dtype=torch.float32, **absent)
        self.net: Any = pipe.transformer.requires_grad_(False)
        self.vae: Any = pipe.vae.requires_grad_(False)
        config = LoraConfig(
            r=model.lora_rank, lora_alpha=model.lora_alpha, target_modules=list(model.lora_targets)
        )
        self.net.add_adapter(config)
        self.weights = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=learner.lr, weight_decay=learner.weight_decay
        )
        folder = locate("shapes/pickscore")
        self.clip: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.clip.requires_grad_(False)
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        tokens = CLIPTokenizer.from_pretrained(folder)(
            [prompt.text for prompt in prompts], padding="max_length", return_tensors="pt"
        )
        with torch.no_grad():
            self.texts = self.clip.get_text_features(**tokens).pooler_output
            self.embeds = [self._encode(pipe, prompt.text) for prompt in prompts]
        pipe.scheduler.set_timesteps(recipe.sampling.steps)
        self.sigmas: Tensor = pipe.scheduler.sigmas
        self.trained = len(recipe.trained_steps(0))

    def _encode(self, pipe: Any, text: str) -> tuple[Tensor, Tensor]:
        """Embeddings [2, L, D] and pooled ones [2, P]: of the empty prompt, then of the text; one
        row each without guidance."""
        length = self.recipe.model.max_sequence_length
        rows = ["", text] if self.guidance > 1 else [text]
        found = pipe.encode_prompt(
            rows, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return found[0], found[2]

    def velocity(self, x: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
        """`embeds` [B, L, D], or with guidance [2 B, L, D], those of the empty prompt first."""
        inputs = torch.cat([x, x]) if self.guidance > 1 else x
        predicted = self.net(
            hidden_states=inputs,
            timestep=(sigma * 1000).expand(len(inputs)),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        if self.guidance == 1:
            return predicted
        empty, text = predicted.chunk(2)
        return empty.detach() + self.guidance * (text - empty.detach())

    def advance(self, v: Tensor, x: Tensor, i: int) -> tuple[Tensor, float]:
        """Mean and standard deviation of the SDE's step i."""
        s, dt = self.sigmas[i].item(), (self.sigmas[i + 1] - self.sigmas[i]).item()
        below = self.sigmas[1].item() if s == 1 else s
        std = self.recipe.sampling.noise_level * math.sqrt(s / (1 - below))
        mean = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt
        return mean, std * math.sqrt(-dt)

    @torch.no_grad()
    def sample(self, group: int, draw: Callable[[int], Tensor]) -> dict[str, Any]:
        embeds, pooled = (
            tensor.repeat_interleave(self.recipe.sampling.group_size, 0)
            for tensor in self.embeds[group]
        )
        x = draw(noise.INITIAL)
        latents, means, log_probs, spreads = [x], [], [], []
        for i in range(self.recipe.sampling.steps):
            v = self.velocity(x, self.sigmas[i], embeds, pooled)
            if i >= self.trained:
                x = x + v * (self.sigmas[i + 1] - self.sigmas[i])
                continue
            mean, std = self.advance(v, x, i)
            x = mean + std * draw(i)
            latents.append(x)
            means.append(mean)
            spreads.append(std)
            log_probs.append(_log_prob(x, mean, std))
        return {
            "latents": torch.stack(latents, 1),
            "means": torch.stack(means, 1),
            "log_probs": torch.stack(log_probs, 1),
            "std": torch.tensor(spreads),
            "final": x,
        }

    @torch.no_grad()
    def features(self, latents: Tensor) -> Tensor:
        """CLIP features of decoded latents, through uint8 pictures, at most 48 at a time."""
        found = []
        for part in latents.split(48):
            scaled = part / self.vae.config.scaling_factor + self.vae.config.shift_factor
            pictures = (self.vae.decode(scaled).sample * 0.5 + 0.5).clamp(0, 1)
            pixels = self.processor((pictures * 255).round().to(torch.uint8), return_tensors="pt")
            found.append(self.clip.get_image_features(pixels["pixel_values"]).pooler_output)
        return torch.cat(found)

    def rewards(self, group: int, path: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """PickScore / 26 of a group's pictures, and the same with what PEC adds."""
        cosine = torch.cosine_similarity(self.features(path["final"]), self.texts[group], dim=-1)
        score = cosine * self.clip.logit_scale.exp() / 26
        method = self.recipe.method
        if not isinstance(method, Pec):
            return score, score
        pairs = torch.stack([path["latents"][:, 1:], path["means"]])
        unit = torch.nn.functional.normalize(self.features(pairs.flatten(0, 2)), dim=-1)
        drawn, means = (unit * math.sqrt(unit.shape[-1])).unflatten(0, pairs.shape[:3])
        residual, std = (drawn - means).square().mean(-1), path["std"]
        log_p = -residual / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return score, score - method.strength * log_p.mean(1)

    def update(
        self, paths: list[dict[str, Any]], advantages: Tensor, parts: list[list[int]]
    ) -> tuple[float, float]:
        """Mean loss and mean gradient norm of an optimizer step for each part of the images."""
        learner, objective = self.recipe.learner, self.recipe.objective
        size, losses, norms = self.recipe.sampling.group_size, [], []
        latents = torch.cat([path["latents"] for path in paths])
        old = torch.cat([path["log_probs"] for path in paths])
        for part in parts:
            for chosen in torch.tensor(part).split(learner.micro_batch):
                embeds, pooled = (
                    torch.stack([self.embeds[int(k) // size][n] for k in chosen], 1).flatten(0, 1)
                    for n in (0, 1)
                )
                advantage = advantages[chosen]
                for i in range(self.trained):
                    v = self.velocity(latents[chosen, i], self.sigmas[i], embeds, pooled)
                    mean, std = self.advance(v, latents[chosen, i], i)
                    log_prob = _log_prob(latents[chosen, i + 1], mean, std)
                    ratio = (log_prob - old[chosen, i]).exp()
                    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
                    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
                    (loss.sum() / (len(part) * self.trained)).backward()
                    losses.append(loss.detach())
            norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), learner.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            norms.append(norm.item())
        return torch.cat(losses).mean().item(), sum(norms) / len(norms)

    def step(self, draw: Callable[[int, int], Tensor], parts: list[list[int]]) -> Step:
        """`draw(group, step)` is the noise of a group."""
        marks = [time.process_time()]
        groups = range(len(self.embeds))
        paths = [self.sample(g, lambda step, g=g: draw(g, step)) for g in groups]
        marks.append(time.process_time())
        found = [self.rewards(g, path) for g, path in enumerate(paths)]
        shaped = torch.stack([both[1] for both in found])
        spread = shaped.std(1, correction=0, keepdim=True) + 1e-4
        advantages = ((shaped - shaped.mean(1, keepdim=True)) / spread).clamp(-5, 5)
        marks.append(time.process_time())
        loss, norm = self.update(paths, advantages.flatten(), parts)
        marks.append(time.process_time())
        reward = torch.stack([both[0] for both in found]).mean().item()
        return Step(reward, loss, norm, _seconds(marks))


def _log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Mean over a latent's elements."""
    squares = (x - mean).square() / (2 * std**2)
    return (-squares - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def _seconds(marks: Sequence[float]) -> dict[str, float]:
    parts = [after - before for before, after in pairwise(marks)]
    return dict(zip(STAGES, [*parts, marks[-1] - marks[0]], strict=True))


class Pair:
    """Both on the same weights, prompts and split of the images into optimizer steps."""

    def __init__(self, groups: int, guidance: float, pec: bool) -> None:
        recipe = settings(groups, guidance, pec)
        prompts = read_prompts(locate_prompts(recipe.data.prompts))[:groups]
        self.ours, self.plain = Ours(recipe, prompts), Plain(recipe, prompts)
        with torch.no_grad():
            for name, weight in self.plain.weights.items():
                weight.copy_(self.ours.weights[name])
        self._size, self._seed = recipe.sampling.group_size, recipe.run.seed
        sizes, updates = [self._size] * groups, recipe.learner.updates
        self._parts = chunks(sizes, updates, seed=self._seed, version=0)
        self._shape = self.ours.roles.policy.latent_shape

    def apart(self) -> dict[str, float]:
        """How far their first steps are from each other. Raises ValueError where that is further
        than rounding."""
        before = _flat(self.plain.weights)
        one, other = self.ours.step(), self.plain.step(self._same_noise, self._parts)
        moves = [_flat(weights) - before for weights in (self.ours.weights, self.plain.weights)]
        gaps = {
            "reward": abs(one.reward - other.reward),
            "loss": abs(one.loss - other.loss),
            "gradient_norm": abs(one.norm / other.norm - 1),
            "update_cosine": 1 - torch.cosine_similarity(*moves, dim=0).item(),
        }
        *exact, update = gaps.values()
        if max(exact) > TOLERANCE or update > 10 * TOLERANCE:
            raise ValueError(f"not the same step, they are apart: {gaps}")
        return gaps

    def _same_noise(self, group: int, step: int) -> Tensor:
        return noise.group_noise(self._seed, group, range(self._size), step, self._shape)

    def timed(self, repeats: int) -> tuple[dict[str, float], float]:
        """The median ratios by stage, and the median seconds of our step."""
        ratios: dict[str, list[float]] = {stage: [] for stage in STAGES}
        whole: list[float] = []
        for _ in range(repeats):
            mine = self.ours.step().seconds
            fresh = self.plain.step(lambda *_: torch.randn(self._size, *self._shape), self._parts)
            whole.append(mine["step"])
            for stage, values in ratios.items():
                values.append(mine[stage] / fresh.seconds[stage])
        medians = {stage: round(statistics.median(values), 3) for stage, values in ratios.items()}
        return medians, statistics.median(whole)


def _flat(weights: Any) -> Tensor:
    return torch.cat([weight.detach().flatten().clone() for weight in weights.values()])


def measure(groups: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    ratios: dict[str, dict[str, float]] = {}
    gaps: list[dict[str, float]] = []
    cost: dict[str, float] = {}
    for guidance in (1.0, 4.5):
        seconds: list[float] = []
        for pec in (False, True):
            pair = Pair(groups, guidance, pec)
            gaps.append(pair.apart())
            medians, step_s = pair.timed(repeats)
            ratios[f"guidance_{guidance:g}{'_pec' if pec else ''}"] = medians
            seconds.append(step_s)
        cost[f"guidance_{guidance:g}"] = round(seconds[1] / seconds[0], 2)
    return {
        "benchmark": "step",
        "groups": groups,
        "repeats": repeats,
        "ours_over_plain": ratios,
        "pec_over_no_method": cost,
        "first_step_apart": {name: float(f"{max(g[name] for g in gaps):.1e}") for name in gaps[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=2, help="groups of 24 images, even")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each that are timed")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.groups, arguments.repeats)))


if __name__ == "__main__":
    main()
