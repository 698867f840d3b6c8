"""How large a recipe's models are and what its steps move and compute, without loading a weight."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from percent_ray.models import pretrained, published, text
from percent_ray.models.base import Condition, family
from percent_ray.models.decoder import VaeDecoder, load_tiny
from percent_ray.models.trained import Trained
from percent_ray.preview import meta
from percent_ray.recipe.discover import SCORERS
from percent_ray.recipe.paths import locate
from percent_ray.recipe.tree import MOST, Recipe

META = torch.device("meta")
FLOAT32 = 4
"""Bytes."""


@dataclass(frozen=True)
class Sizes:
    """Bytes, and floating-point operations of one image."""

    policy: Trained
    """On the meta device."""
    transformer: int
    """Bytes of all its weights, the adapter's too."""
    trained: int
    """Weights that are trained, and below their bytes."""
    trained_bytes: int
    text: Mapping[str, int]
    """Bytes of each text encoder."""
    vae: int
    tiny: int
    """Bytes of the decoder of scored transitions, where it is another one."""
    scorers: Mapping[str, int | None]
    """Bytes of each scorer's files; None where they are not at hand."""
    draw: int
    """Most bytes alive while a batch is drawn, beside the weights."""
    learn: int
    """The same of a micro-batch forward and back, with the gradients."""
    decode: int
    """The same of a batch of a decoder: of the one that takes more."""
    velocity_flops: float
    """Of one guided velocity of one image."""
    decode_flops: float
    score_flops: float
    """Of decoding one finished image, and one of a transition."""
    group: int
    """A group's table of the object store."""


def measure(recipe: Recipe) -> Sizes:
    """Sizes of a recipe whose model has its config files at hand (`published.at_hand`)."""
    model = recipe.model
    loaders = family(model.family)
    policy = loaders.load_policy(model, seed=recipe.run.seed, device=META, text=False)
    decoder = loaders.load_decoder(model, device=META)
    weights = policy.trainable()
    tiny = None
    if recipe.scores_by_tiny:
        path = recipe.perceptual.tiny_path
        tiny = load_tiny(model, path, default=loaders.TINY, device=META)
    return Sizes(
        policy=policy,
        transformer=_bytes(policy.module.parameters()),
        trained=pretrained.count(weights.values()),
        trained_bytes=_bytes(weights.values()),
        text=dict(_text(recipe, policy)),
        vae=_bytes(decoder.vae.parameters()),
        tiny=_bytes(tiny.vae.parameters()) if tiny else 0,
        scorers=dict(_scorers(recipe)),
        draw=meta.peak(lambda: _draw(policy, recipe.sampling.batch_size)),
        learn=_learn(policy, recipe.learner.micro_batch),
        decode=max(
            meta.peak(lambda: _decode(decoder, policy, _rows(recipe, scoring=tiny is None))),
            meta.peak(lambda: _decode(tiny or decoder, policy, _rows(recipe, scoring=True))),
        ),
        velocity_flops=meta.flops(lambda: _draw(policy, 1)),
        decode_flops=meta.flops(lambda: _decode(decoder, policy, 1)),
        score_flops=meta.flops(lambda: _decode(tiny or decoder, policy, 1)),
        group=group_bytes(recipe, policy.latent_shape),
    )


def _rows(recipe: Recipe, *, scoring: bool) -> int:
    """Images in one call of a decoder, at most: of finished ones, or of scored transitions too."""
    asked, finished = recipe.perceptual.batch_size, recipe.sampling.group_size
    images = max(finished, recipe.scored_images) if scoring else finished
    return min(MOST if asked == "auto" else asked, images)


def group_bytes(recipe: Recipe, latent_shape: tuple[int, int, int]) -> int:
    """Of one group's payload (`data/arrow.py`): latents, means, log-probs and finished latents."""
    latent = getattr(torch, recipe.sampling.storage_dtype).itemsize
    for side in latent_shape:
        latent *= side
    steps = len(recipe.trained_steps(0))
    images = recipe.sampling.group_size
    rows = 1  # the finished latents
    if steps:
        rows += 2 * steps + 1
    if recipe.perceptual.decode == "clean" and recipe.measured_spaces(probe=False):
        rows += 2 * (recipe.perceptual.steps or steps)
    return images * (rows * latent + steps * FLOAT32)


def _inputs(policy: Trained, rows: int) -> tuple[Tensor, Tensor, Condition]:
    latents = torch.empty(rows, *policy.latent_shape, device=META)
    condition = {
        name: torch.empty(rows, *shape, device=META, dtype=policy.dtype)
        for name, shape in policy.condition_shapes().items()
    }
    return latents, torch.empty(rows, device=META), condition


@torch.no_grad()
def _draw(policy: Trained, rows: int) -> Tensor:
    return policy.velocity(*_inputs(policy, rows))


def _learn(policy: Trained, rows: int) -> int:
    found = meta.peak(lambda: policy.velocity(*_inputs(policy, rows)).square().sum().backward())
    policy.module.zero_grad()
    return found


@torch.no_grad()
def _decode(decoder: VaeDecoder, policy: Trained, rows: int) -> Any:
    return decoder.pixels(torch.empty(rows, *policy.latent_shape, device=META))


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.dtype.itemsize for weight in weights)


def _text(recipe: Recipe, policy: Trained) -> Iterator[tuple[str, int]]:
    """Every text encoder that a rollout worker loads."""
    folder, dtype = recipe.model.folder, policy.dtype
    for part, kind in text.parts(recipe.model, "text_encoder"):
        where = {"part": f"model.path: {part}", "subfolder": part}
        encoder = pretrained.skeleton(kind, folder, **where, dtype=dtype)
        yield part, _bytes(encoder.parameters())


def _scorers(recipe: Recipe) -> Iterator[tuple[str, int | None]]:
    """Bytes of the weight files of each scorer, or what was published at float32; none of one that
    has no weights, or whose server holds them."""
    wanted = {*recipe.scored, *recipe.image_spaces, *recipe.measured_spaces(probe=True)}
    for name in sorted(wanted):
        module = SCORERS.module(recipe.kind_of(name), key=f"scorers.{name}.kind")
        path = recipe.scorers[name].path or getattr(module, "DEFAULT", "")
        if not path or "://" in path:
            yield name, 0
            continue
        folder = Path(locate(path)) if path.startswith("shapes/") else Path(path)
        if folder.is_dir():
            files = [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]
            yield name, sum(file.stat().st_size for file in files)
        else:
            weights = published.WEIGHTS.get(path)
            yield name, weights * FLOAT32 if weights else None
