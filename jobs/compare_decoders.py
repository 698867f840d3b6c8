"""How well the tiny decoder stands in for the VAE where transitions are scored: the rank
correlation of both perceptual log-probs, and the seconds of both decodings."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from percent_ray import job

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8
    from torch import Tensor

    from percent_ray.models.base import Decoder
    from percent_ray.recipe.tree import Recipe

Row = dict[str, float]

USAGE = """\
python jobs/compare_decoders.py [--config RECIPE] [--groups N] [--json] [--section.key VALUE]

examples
  python jobs/compare_decoders.py --perceptual.spaces [pickscore,dino]
      on the embedded world
  python jobs/compare_decoders.py --config RECIPE --perceptual.tiny_path FOLDER --groups 4
      another recipe's model, prompts and spaces, and an AutoencoderTiny of yours

N groups are drawn as the recipe draws them, and every trained step is scored with both decoders.
Nothing is trained and nothing is written. --json prints one line of JSON in the table's place.
"""


@dataclass(frozen=True, slots=True)
class Compared:
    """What both decoders gave."""

    log_probs: "Mapping[str, Sequence[tuple[Float32[Tensor, 'K S'], Float32[Tensor, 'K S']]]]"
    """By space those of each group: with the VAE, and with the tiny decoder."""
    steps: Sequence[range]
    """That each group's S are of."""
    images: int
    """That each has decoded."""
    seconds: tuple[float, float]
    """That each took for it, without encoding."""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The job's own flags, and overrides of the recipe."""
    parser = job.Parser(usage=USAGE, description=(__doc__ or "").strip())
    default = Path(__file__).parent / "recipes" / "shapes_pec.yaml"
    parser.add_argument("--config", type=Path, default=default, help="a training recipe")
    parser.add_argument("--groups", type=_positive, default=8, help="groups to draw")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_known_args(argv)


MOST = 10_000
"""Groups that are drawn."""


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:12]) <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0 and up to {MOST:,}")
    return int(text)


def main() -> None:
    job.run(measure)


def measure() -> None:
    arguments, overrides = parse(sys.argv[1:])
    from percent_ray.recipe import load as recipes

    recipe = prepared(recipes.load(arguments.config, overrides))
    found = compare(recipe, arguments.groups, say=not arguments.json)
    said = summary(found)
    lines = [json.dumps({"recipe": recipe.run.name, "groups": arguments.groups, **said})]
    print("\n".join(lines if arguments.json else table(said)))


def prepared(recipe: "Recipe") -> "Recipe":
    """The recipe with every trained step scored. Raises ValueError where there is none to score."""
    if recipe.is_forward:
        raise ValueError("learner.process forward has no transitions to score; set it to reverse")
    if not recipe.measured_spaces(probe=True):
        raise ValueError("perceptual.spaces: names no space to score in; set it to [pickscore]")
    every = {"measure": True, "steps": 0}
    return recipe.model_copy(update={"perceptual": recipe.perceptual.model_copy(update=every)})


def compare(recipe: "Recipe", groups: int, *, say: bool) -> Compared:
    """Draw `groups` groups with the recipe's model as it is loaded, and score them twice."""
    from percent_ray.data.prompts import PromptStream, of_recipe
    from percent_ray.models import batch
    from percent_ray.models.base import best_device, family
    from percent_ray.models.decoder import load_tiny
    from percent_ray.roles.perception import log_p_perc, scored_pairs
    from percent_ray.roles.rollout import RolloutWorker
    from percent_ray.scorers.base import load_scorer

    prompts, _ = of_recipe(recipe)
    perceptual, device = recipe.perceptual, best_device()
    sampler = RolloutWorker(recipe, worker="rollout")
    loaders = family(recipe.model.family)
    full = loaders.load_decoder(recipe.model, device=device)
    options = {"default": loaders.TINY, "device": device}
    tiny = load_tiny(recipe.model, perceptual.tiny_path, **options)
    spaces = recipe.measured_spaces(probe=True)
    scorers = {name: load_scorer(name, recipe.scorers[name], device=device) for name in spaces}
    parts: list[Any] = [full, tiny, *scorers.values()]
    if say:
        print("\n".join([*sampler.ready(), *(part.describe() for part in parts)]), "\n")
    stream = PromptStream(prompts, recipe.run.seed)
    seconds, images = [0.0, 0.0], 0
    log_probs: dict[str, list[Any]] = {space: [] for space in spaces}
    steps: list[range] = []
    card, batches = batch.card(device, recipe.runtime), list[int]()
    for group in range(groups):
        path = sampler.sample(group, stream.prompt(group), version=0)
        pairs, std = scored_pairs(path, path.payload, perceptual.decode)
        latents = pairs.flatten(0, 2)
        options = {"shape": pairs.shape[:3], "std": std, "scale": perceptual.feature_scale}
        both: dict[str, list[Tensor]] = {space: [] for space in spaces}
        for which, decoder in enumerate((full, tiny)):
            if not group:
                decoded(decoder, latents[:2], 1)  # a first call is slower
                asked, size = perceptual.batch_size, recipe.model.size
                chosen = batch.choose(asked, decoder, size, images=len(latents), card=card)
                batches.append(chosen[0])
            start = time.perf_counter()
            made = decoded(decoder, latents, batches[which])
            seconds[which] += time.perf_counter() - start
            for space, scorer in scorers.items():
                both[space].append(log_p_perc(scorer, made, **options))
        for space, values in both.items():
            log_probs[space].append(tuple(values))
        steps.append(path.steps)
        images += len(latents)
    return Compared(log_probs, steps, images, (seconds[0], seconds[1]))


def decoded(decoder: "Decoder", latents: "Tensor", size: int) -> "UInt8[Tensor, 'N 3 h w']":
    """Images on the CPU, for which a GPU has to be done with them."""
    import torch

    return torch.cat([decoder.decode(part).cpu() for part in latents.split(size)])


def correlations(pairs: "Sequence[tuple[Float32[Tensor, ' K'], Float32[Tensor, ' K']]]") -> Row:
    """`within`: mean over groups of the correlation among a group's images; `all`: among all."""
    import torch
    from scipy.stats import spearmanr

    def correlation(full: "Tensor", tiny: "Tensor") -> float:
        found: Any = spearmanr(full.numpy(), tiny.numpy())
        return float(found.statistic)

    within = [correlation(full, tiny) for full, tiny in pairs]
    every = correlation(*(torch.cat(values) for values in zip(*pairs, strict=True)))
    return {"within": round(sum(within) / len(within), 4), "all": round(every, 4)}


def summary(found: Compared) -> dict[str, Any]:
    """As JSON: by space and step the correlations, `mean` of the mean over steps, and seconds."""
    spaces: dict[str, dict[str, Row]] = {}
    for space, groups in found.log_probs.items():
        by_step: dict[int, list[Any]] = {}
        for (full, tiny), steps in zip(groups, found.steps, strict=True):
            for column, step in enumerate(steps):
                by_step.setdefault(step, []).append((full[:, column], tiny[:, column]))
        spaces[space] = {str(step): correlations(by_step[step]) for step in sorted(by_step)}
        spaces[space]["mean"] = correlations([(a.mean(1), b.mean(1)) for a, b in groups])
    full_s, tiny_s = found.seconds
    return {
        "spearman": spaces,
        "images": found.images,
        "full_s": round(full_s, 3),
        "tiny_s": round(tiny_s, 3),
        "ratio": round(full_s / tiny_s, 2),
    }


def table(said: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = ["rank correlation of log p_perc by the tiny decoder with that by the VAE (Spearman)"]
    for space, rows in said["spearman"].items():
        lines.append(f"{space:<18} within a group  over all")
        for step, values in rows.items():
            name = "mean over steps" if step == "mean" else f"step {step}"
            lines.append(f"  {name:<16} {values['within']:>14.3f} {values['all']:>9.3f}")
    lines.append(
        f"decoding {said['images']} images: VAE {said['full_s']} s, tiny {said['tiny_s']} s, "
        f"{said['ratio']} times as fast"
    )
    return lines


if __name__ == "__main__":
    main()
