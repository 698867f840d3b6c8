"""A policy of a few plain layers, and batches that it draws: everything that learning needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from percent_ray.data import arrow
from percent_ray.flow.noise import generator, group_noise
from percent_ray.flow.sampler import ode, rollout
from percent_ray.learn.engine import TorchEngine
from percent_ray.models.base import Condition
from percent_ray.objective.grpo import Weights
from percent_ray.recipe import tree
from percent_ray.roles.learner import Learner
from percent_ray.types import ShapedBatch, ShapedRow

SHAPE = (2, 4, 4)
WIDTH = 330
"""WIDTH x WIDTH is more than the 1e5 elements below which ZeRO-3 leaves a tensor whole."""


class Adapted(nn.Linear):
    """A frozen layer with a trained one beside it that can be switched off."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.adapter = nn.Linear(inputs, outputs, bias=False)
        self.adapted = True
        nn.init.normal_(self.adapter.weight, std=0.02)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input.to(self.weight.dtype))
        if self.adapted:
            output = output + self.adapter(input.to(self.adapter.weight.dtype))
        return output


class Velocity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Adapted(32 + 1 + 3, WIDTH)
        self.middle = Adapted(WIDTH, WIDTH)
        self.last = Adapted(WIDTH, 32)

    def forward(self, latents: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
        inputs = torch.cat([latents.flatten(1), sigma[:, None], embeds], 1)
        hidden = torch.tanh(self.middle(torch.tanh(self.first(inputs))))
        return self.last(hidden).float().reshape(latents.shape)


class FakePolicy:
    """`models.base.Policy` with guidance 2. `dtype` is that of the layers; `full` trains them,
    else only their float32 adapters."""

    latent_shape = SHAPE

    def __init__(
        self, seed: int = 0, *, full: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module: nn.Module = Velocity()
        self._net = self.module.to(dtype)
        for name, parameter in self._net.named_parameters():
            parameter.requires_grad_(full or "adapter" in name)
            if not full and parameter.requires_grad:
                parameter.data = parameter.data.float()

    def encode(self, texts: Sequence[str]) -> Condition:
        rows = [torch.randn(3, generator=generator("encode", text)) for text in texts]
        return {"embeds": torch.stack(rows)}

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        embeds = condition["embeds"].expand(len(latents), -1)
        conditional = self.module(latents, sigma, embeds)
        with torch.no_grad():
            unconditional = self.module(latents, sigma, torch.zeros_like(embeds))
        return unconditional + 2.0 * (conditional - unconditional)

    def sigmas(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    @contextmanager
    def reference(self) -> Iterator[None]:
        layers = [layer for layer in self._net.modules() if isinstance(layer, Adapted)]
        for layer in layers:
            layer.adapted = False
        try:
            yield
        finally:
            for layer in layers:
                layer.adapted = True

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {k: v for k, v in self._net.named_parameters() if v.requires_grad}

    def save(self, folder: str, weights: Mapping[str, Tensor]) -> None:
        Path(folder).mkdir()
        save_file(dict(weights), Path(folder) / "weights.safetensors")

    def load(self, folder: str) -> None:
        for name, weight in load_file(Path(folder) / "weights.safetensors").items():
            self.trainable()[name].data.copy_(weight)


def make_learner(recipe: tree.Recipe, seed: int = 0, **policy: Any) -> tuple[Learner, FakePolicy]:
    """A learner of one process, and its policy."""
    fake = FakePolicy(seed, **policy)
    return Learner(recipe, fake, TorchEngine(recipe.learner, fake)), fake


def resumed(first: Learner, recipe: tree.Recipe, folder: Path) -> tuple[Learner, FakePolicy]:
    """What `first` has saved, in a new learner whose trained weights began elsewhere."""
    folder.mkdir()
    first.save(folder)
    learner, policy = make_learner(recipe, seed=9)
    # The frozen weights come from the model's own folder.
    frozen = {k: v for k, v in FakePolicy().module.state_dict().items() if "adapter" not in k}
    policy.module.load_state_dict(frozen, strict=False)
    learner.load(folder)
    return learner, policy


def fake_recipe(folder: Path, **sections: dict[str, Any]) -> tree.Recipe:
    """Four steps, three of them trained; sections override field by field."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    fields: dict[str, dict[str, Any]] = {
        "data": {"prompts": str(prompts), "groups_per_step": 4},
        "sampling": {"steps": 4, "group_size": 6, "batch_size": 6},
        "objective": {"clip_low": 0.02, "clip_high": 0.03},
        # At the usual eps AdamW blows the rounding of gradients near 0 up to whole steps.
        "learner": {
            "lr": 1e-3,
            "eps": 1e-4,
            "micro_batch": 3,
            "ema_every": 2,
            "max_grad_norm": 0.05,
        },
    }
    for name, changes in sections.items():
        fields[name] = fields.get(name, {}) | changes
    return tree.Recipe.model_validate(fields)


def draw_batch(
    policy: FakePolicy,
    recipe: tree.Recipe,
    *,
    groups: int = 4,
    images: int = 6,
    step: int = 0,
    version: int = 0,
    drawn_by: int | None = None,
) -> ShapedBatch:
    """Groups as a rollout would draw them under the policy's present weights, which are those of
    `version`, or of the version `drawn_by`."""
    rows = []
    for number in range(groups):
        group_id = step * groups + number
        condition = policy.encode([f"prompt {group_id}"])
        payload = draw_group(policy, recipe, group_id, condition, images)
        source = generator("advantages", group_id)
        advantages = torch.randn(images, generator=source)
        shaped = weights(recipe, advantages)
        drawn = version if drawn_by is None else drawn_by
        rows.append(ShapedRow(group_id, drawn, payload, arrow.pack(condition), shaped))
    return ShapedBatch(version, tuple(rows))


def weights(recipe: tree.Recipe, advantages: Tensor) -> Weights:
    """The same advantage at every step, and the KL of the recipe's objective."""
    steps = 1 if recipe.is_forward else recipe.sampling.steps - 1
    advantage = advantages.unsqueeze(-1).repeat(1, steps)
    kl = torch.full_like(advantage, recipe.objective.kl) if recipe.objective.kl else None
    return Weights(advantage, kl_reference=kl)


def draw_group(
    policy: FakePolicy, recipe: tree.Recipe, group_id: int, condition: Condition, images: int
) -> pa.Table:
    def draw(step: int) -> Tensor:
        return group_noise(recipe.run.seed, group_id, range(images), step, SHAPE)

    if recipe.is_forward:
        final = ode(
            lambda latents, sigma: policy.velocity(latents, sigma, condition),
            draw(-1),
            policy.sigmas(recipe.sampling.steps),
        )
        return arrow.images_table(final)
    steps = range(recipe.sampling.steps - 1)
    path = rollout(
        lambda latents, sigma: policy.velocity(latents, sigma, condition),
        draw(-1),
        policy.sigmas(recipe.sampling.steps),
        steps=steps,
        noise_level=recipe.sampling.noise_level,
        kind=recipe.sampling.kind,
        noise_at=draw,
        storage_dtype=getattr(torch, recipe.sampling.storage_dtype),
    )
    return arrow.trajectory_table(
        latents=path.latents.transpose(0, 1),
        means=path.means.transpose(0, 1),
        log_probs=path.log_probs.transpose(0, 1),
        final=path.final,
        steps=steps,
    )
