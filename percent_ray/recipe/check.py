"""What has to fit together in a recipe, beyond the bounds of each key."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from percent_ray.flow import schedule
from percent_ray.recipe import scorers
from percent_ray.recipe.discover import FAMILIES, SCORERS
from percent_ray.recipe.paths import locate, locate_pipeline, locate_prompts
from percent_ray.recipe.scorers import NO_FEATURES, NO_SCORE
from percent_ray.recipe.section import METHODS

if TYPE_CHECKING:
    from percent_ray.recipe.tree import Recipe


def problems(recipe: "Recipe") -> Iterator[str]:
    """One line for every problem, that says what to set."""
    for check in (
        _modules,
        _paths,
        _scorers,
        _spaces,
        _kinds,
        _unread,
        _method,
        _objective,
        _steps,
        _process,
        _sizes,
        _dtype,
        _roles,
    ):
        yield from check(recipe)


def _modules(recipe: "Recipe") -> Iterator[str]:
    if problem := FAMILIES.unknown(recipe.model.family, key="model.family"):
        yield problem


def _scorers(recipe: "Recipe") -> Iterator[str]:
    yield from scorers.problems(recipe.scorers)


def _paths(recipe: "Recipe") -> Iterator[str]:
    for field in ("prompts", "probe_prompts"):
        path = getattr(recipe.data, field)
        if path and not locate_prompts(path).is_file():
            yield f"data.{field}: no file {locate_prompts(path)}"
    places: list[tuple[str, str, Callable[[str], str]]] = [
        ("model.path", recipe.model.path, locate_pipeline),
        ("perceptual.tiny_path", recipe.perceptual.tiny_path, locate),
    ]
    for key, path, find in places:
        try:
            if path:
                find(path)
        except ValueError as error:
            yield f"{key}: {error}"


def _spaces(recipe: "Recipe") -> Iterator[str]:
    if not any(s.weight for s in recipe.scorers.values()):
        yield "scorers: none has a weight above 0; set one's weight"
    for name, scorer in recipe.scorers.items():
        if scorer.normalize and not scorer.weight:
            yield f"scorers.{name}.normalize: its weight is 0; set weight, or leave normalize out"
    for key, names in _named(recipe):
        usual = getattr(type(recipe.method), key.partition(".")[2], ())
        if key.startswith("method.") and usual and not names:
            yield f"{key}: {recipe.method.name} needs one or more; set it to [{', '.join(usual)}]"
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield f"{key}: {name!r} is there {names.count(name)} times; leave one"
            if name not in recipe.scorers:
                yield (
                    f"{key}: {name!r} is not among scorers ({', '.join(recipe.scorers)}); "
                    "add it there with weight 0"
                )
    if recipe.needs_probes and not recipe.monitor.probe_every:
        yield "method.strength auto measures on probes; set monitor.probe_every above 0"


def _named(recipe: "Recipe") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keys that name scorers, and what they name."""
    yield "perceptual.spaces", recipe.perceptual.spaces
    yield "monitor.spaces", recipe.monitor.spaces
    for key in ("spaces", "image_spaces", "judges"):
        yield f"method.{key}", recipe.of_method(key)


def _kinds(recipe: "Recipe") -> Iterator[str]:
    """Scorers that are asked for what their kind does not do."""
    known = SCORERS.names()
    kinds = {name: recipe.kind_of(name) for name in recipe.scorers}
    lacks = {
        line: {name for name, kind in kinds.items() if kind in known and SCORERS.has(kind, line)}
        for line in (NO_FEATURES, NO_SCORE)
    }
    for key, names in _named(recipe):
        if key == "method.judges":
            wrong, only = lacks[NO_SCORE], "encodes pictures and scores none"
        else:
            wrong, only = lacks[NO_FEATURES], "scores pictures and has no features of them"
        for name in dict.fromkeys(names):
            if name in wrong:
                yield f"{key}: {name!r} is a {kinds[name]}, which only {only}; leave it out"
    for name in lacks[NO_SCORE]:
        if recipe.scorers[name].weight:
            yield (
                f"scorers.{name}.weight: a {kinds[name]} only encodes pictures and scores none; "
                "set it to 0"
            )


def _unread(recipe: "Recipe") -> Iterator[str]:
    """Keys that would have no effect where one is meant."""
    sampling, model = recipe.sampling, recipe.model
    if not sampling.window_size and (sampling.window_low or sampling.window_high):
        yield (
            f"sampling.window_low {sampling.window_low}, window_high {sampling.window_high}: are "
            "of a window; set sampling.window_size above 0, or leave them out"
        )
    if model.family == "sd3" and model.true_cfg != 1:
        yield (
            f"model.true_cfg {model.true_cfg:g}: is of flux; set model.guidance for an sd3, and "
            "leave it out"
        )
    if sampling.kind == "cps" and sampling.noise_level > 1 and not recipe.is_forward:
        yield (
            f"sampling.noise_level {sampling.noise_level:g}: cps is defined from 0 to 1; set it to "
            "1 or less"
        )
    targets = model.lora_targets
    if model.lora_rank and not targets:
        yield "model.lora_targets: names no layer; leave it out, or set model.lora_rank 0"
    for target in dict.fromkeys(targets):
        if not re.fullmatch(r"\w+(\.\w+)*", target):
            yield f"model.lora_targets: {target!r} is no layer; give one such as attn.to_q"
        elif targets.count(target) > 1:
            yield f"model.lora_targets: {target!r} is there more than once; leave one"


def _method(recipe: "Recipe") -> Iterator[str]:
    method = recipe.method
    if getattr(method, "native", False) and getattr(method, "relative", False):
        yield "method.relative is about shaped rewards, method.native has none; set one to false"
    compares = method.name in ("clip_cov", "kl_cov") and recipe.of_method("spaces")
    if compares and recipe.perceptual.steps and not recipe.is_forward:
        yield (
            f"perceptual.steps {recipe.perceptual.steps}: {method.name} compares groups step by "
            "step, and each would score others; set perceptual.steps 0"
        )
    cps = recipe.sampling.kind == "cps" and not recipe.is_forward
    if method.name == "entropy_reg" and not recipe.of_method("spaces") and cps:
        yield (
            "method.name entropy_reg weighs log pi, and that of sampling.kind cps is another size "
            "at every step; set sampling.kind flow_sde, or method.spaces"
        )


def _objective(recipe: "Recipe") -> Iterator[str]:
    objective = recipe.objective
    if objective.ratio == "guard" and not recipe.is_forward:
        if recipe.sampling.kind == "cps":
            yield (
                "objective.ratio guard is of a log-prob with its variance, which cps drops; set "
                "sampling.kind flow_sde or dance, or objective.ratio plain"
            )
        if objective.old_log_prob == "replayed":
            yield (
                "objective.ratio guard compares means with those that were drawn around; set "
                "objective.old_log_prob drawn, or objective.ratio plain"
            )
    if objective.kl_steps and not recipe.is_forward:
        yield from _kl_steps(recipe)
    if not recipe.has_kl and (objective.kl_steps or objective.kl_form == "mean"):
        yield (
            f"objective.kl_steps {objective.kl_steps}, kl_form {objective.kl_form}: are of a KL; "
            "set objective.kl above 0, or leave them out"
        )
    if not recipe.has_kl and (objective.reference_every or objective.reference_kl):
        yield (
            f"objective.reference_every {objective.reference_every}, reference_kl "
            f"{objective.reference_kl:g}: move the reference of a KL; set objective.kl above 0, or "
            "leave them out"
        )


def _kl_steps(recipe: "Recipe") -> Iterator[str]:
    asked = recipe.objective.kl_steps
    if recipe.sampling.window_size:
        yield (
            f"objective.kl_steps {asked}: is of the first steps, and a window (sampling."
            "window_size) may lie behind them; set one of the two to 0"
        )
        return
    with contextlib.suppress(ValueError):  # told by `_steps`
        if asked > (steps := len(recipe.trained_steps(0))):
            yield f"objective.kl_steps {asked}: {steps} steps are trained; set it lower, or to 0"


def cards(key: str, gpus: float) -> Iterator[str]:
    """What is wrong with the GPUs of one worker."""
    if gpus > 1 and gpus != int(gpus):
        yield (
            f"{key} {gpus:g}: above 1 whole cards are given; set it to {int(gpus)}, "
            f"{int(gpus) + 1} or a part of one"
        )


def _roles(recipe: "Recipe") -> Iterator[str]:
    for role in ("rollout", "perception", "learner"):
        yield from cards(f"runtime.{role}.gpus", getattr(recipe.runtime, role).gpus)
    learner, runs_ray = recipe.runtime.learner, recipe.runtime.backend == "ray"
    if runs_ray and learner.workers > 1 and 0 < learner.gpus < 1:
        yield (
            f"runtime.learner.gpus {learner.gpus:g}: two of its {learner.workers} ranks would be "
            "on one card, which NCCL refuses; set it to 1, or runtime.learner.workers 1"
        )


def _dtype(recipe: "Recipe") -> Iterator[str]:
    """Whether the trained weights, which without LoRA are the model's own, can be stepped."""
    dtype, stage = recipe.model.dtype, recipe.learner.zero_stage
    if dtype == "float16":
        yield (
            "model.dtype float16: gradients are below its least number, and no loss is scaled "
            "here; set model.dtype bfloat16 or float32"
        )
        return
    if recipe.model.lora_rank or dtype == "float32":
        return
    line = f"model.dtype {dtype} with model.lora_rank 0: "
    if recipe.runtime.backend == "local":
        yield line + (
            "a step of AdamW is lost in it, and runtime.backend local keeps no float32 copy; set "
            "model.dtype float32, model.lora_rank above 0 or runtime.backend ray with bfloat16"
        )
    elif not stage:
        yield line + (
            "learner.zero_stage 0 keeps no float32 copy of the weights; set learner.zero_stage 1, "
            "2 or 3, or model.dtype float32"
        )


def _process(recipe: "Recipe") -> Iterator[str]:
    sampling = recipe.sampling
    if not recipe.is_forward:
        if sampling.solver != "euler":
            yield (
                f"sampling.solver {sampling.solver} is of the forward process; set it to euler or "
                "learner.process to forward"
            )
        return
    if hasattr(recipe.method, "spaces"):
        others = [name for name, method in METHODS.items() if not hasattr(method, "spaces")]
        yield (
            f"method.name {recipe.method.name} acts on denoising steps, which learner.process "
            f"forward does not have; set learner.process reverse, or method.name to one of "
            f"{', '.join(others)}"
        )
    forward = recipe.forward
    old = recipe.learner.old
    if old.first > old.most:
        yield (
            f"learner.old.first {old.first:g} is above learner.old.most {old.most:g}; set it lower"
        )
    if forward.distribution == "shifted":
        if not forward.times:
            yield "forward.times 0 is for a schedule; set it to 1 or more"
        return
    if forward.times > sampling.steps:
        yield (
            f"forward.times {forward.times} is more than the schedule's {sampling.steps}; set it "
            "lower or forward.distribution shifted"
        )
    try:
        schedule.trained_steps(sampling.steps, fraction=sampling.train_fraction)
    except ValueError as error:
        yield f"sampling.train_fraction: {error}"


def _steps(recipe: "Recipe") -> Iterator[str]:
    try:
        recipe.trained_steps(0)
    except ValueError as error:
        key = "window_size" if recipe.sampling.window_size else "train_fraction"
        yield f"sampling.{key}: {error}"

        return
    sampling = recipe.sampling
    if recipe.is_forward or sampling.kind != "cps":
        return
    window, steps = sampling.window_size, sampling.steps
    if (sampling.window_high if window else len(recipe.trained_steps(0))) == steps:
        asked = ["sampling.kind flow_sde"]
        if window and sampling.window_low + window < steps:
            asked.insert(0, f"sampling.window_high {steps - 1}")
        elif not window and steps > 1:
            asked.insert(0, f"sampling.train_fraction {(steps - 0.5) / steps:.4g}")
        yield (
            f"sampling.kind cps draws the last of {steps} steps without noise, which cannot be "
            f"trained; set {' or '.join(asked)}"
        )


def _sizes(recipe: "Recipe") -> Iterator[str]:
    images, updates = recipe.trained_images, recipe.learner.updates
    if updates > images:
        yield (
            f"learner.updates {updates} optimizer steps have {images} images (groups_per_step "
            f"{recipe.data.groups_per_step} x group_size {recipe.sampling.group_size}) to learn "
            f"from, at least one each; set learner.updates {images} or lower"
        )
    clusters, group = getattr(recipe.method, "clusters", 0), recipe.sampling.group_size
    if clusters >= group:
        yield (
            f"method.clusters {clusters}: a group has {group} images (sampling.group_size), each "
            f"then its own cluster; set it to {max(2, group // 4)}, or a larger group"
        )
    yield from _scored(recipe)
    if recipe.model.compile and recipe.runtime.backend == "ray" and recipe.learner.zero_stage == 3:
        yield (
            "model.compile true does not go with learner.zero_stage 3, which gathers weights "
            "inside the compiled blocks; set learner.zero_stage 2 or model.compile false"
        )
    for name in ("rollout", "perception", "learner"):
        role = getattr(recipe.runtime, name)
        if not role.max_workers:
            continue
        key = f"runtime.{name}.max_workers {role.max_workers}"
        if name == "learner":
            yield f"{key}: the learner group keeps its size; leave it out"
        elif role.max_workers < role.workers:
            yield f"{key} is below runtime.{name}.workers {role.workers}; set it higher"
    if recipe.runtime.backend == "local" and recipe.runtime.learner.workers > 1:
        yield (
            f"runtime.backend local has one learner, runtime.learner.workers is "
            f"{recipe.runtime.learner.workers}; set it to 1 or runtime.backend to ray"
        )


def _scored(recipe: "Recipe") -> Iterator[str]:
    try:
        steps = len(recipe.trained_steps(0))
    except ValueError:
        return  # told by `_steps`
    if steps and recipe.perceptual.steps > steps:
        yield (
            f"perceptual.steps {recipe.perceptual.steps} is more than the {steps} trained steps; "
            f"set perceptual.steps {steps} or lower, 0 is all of them"
        )
