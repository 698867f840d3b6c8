"""The recipe: one frozen tree, read from YAML and `--dotted.overrides`, checked whole at load.

Defaults are Flow-GRPO's hyper-parameters for SD3.5-M with PickScore; a recipe file holds only what
differs from them. The docstring under a field is its `--help`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from percent_ray.section import METHODS, AnyMethod, Section

EMBEDDED = Path(__file__).parent / "shapes"

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


def locate(path: str) -> str:
    """Folder or hub id of `path`. `shapes/NAME` is the embedded world's, shipped in this package.

    Raises ValueError where `path` can only be a folder and the folder is not there.
    """
    if path.startswith("shapes/"):
        folder = EMBEDDED / "weights" / path.removeprefix("shapes/")
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        folder = Path(path).expanduser()
    else:
        return path
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give a folder or a hub id such as owner/name")
    return str(folder)


def locate_prompts(path: str) -> Path:
    """The prompt file of `path`; `shapes/NAME` is the embedded world's."""
    if path.startswith("shapes/"):
        return EMBEDDED / "prompts" / path.removeprefix("shapes/")
    return Path(path).expanduser()


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    """Names the run's folder and its MLflow run."""
    folder: str = "runs"
    """Runs are written to FOLDER/NAME: shared storage where the learner spans machines."""
    seed: int = 42
    """Every random draw is a function of it and of ids."""
    steps: PositiveInt = 1000
    """Learner steps (batches consumed) in all."""
    checkpoint_every: PositiveInt = 60
    """Steps between checkpoints; sampling ahead never crosses one, so that resume is exact."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are deleted."""


class Model(Section):
    family: str = "sd3"
    """Module of percent_ray/models."""
    path: str = "stabilityai/stable-diffusion-3.5-medium"
    """Diffusers folder, hub id, or shapes/sd3."""
    resolution: PositiveInt = 512
    """Image height and width in pixels."""
    guidance: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance in draw and replay; 1 is off."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the frozen weights and the activations. Trained weights are float32 under LoRA."""
    t5: bool = True
    """Use the T5 text encoder where the folder has one."""
    max_sequence_length: PositiveInt = 128
    """T5 tokens; without T5 the width of its zeros."""
    lora_rank: Annotated[int, Field(ge=0)] = 32
    """0 trains every weight of the transformer."""
    lora_alpha: PositiveInt = 64
    """LoRA scale is alpha / rank."""
    lora_targets: tuple[str, ...] = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
    )
    """Suffixes of the layers that get an adapter."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""

    @property
    def folder(self) -> str:
        return locate(self.path)


class Scorer(Section):
    path: str = ""
    """Folder, hub id or shapes/NAME; the scorer's own default where empty."""
    weight: NonNegative = 0.0
    """Of its score in the reward; 0 when it only encodes or only reports."""
    required: bool = True
    """A group whose required reward fails is dropped and counted; an optional one is left out."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Calls after the first one that fails or is not finite."""


class Sampling(Section):
    steps: PositiveInt = 10
    """Denoising steps T."""
    noise_level: PositiveFloat = 0.7
    """Eta of the SDE."""
    kind: Literal["flow_sde", "cps"] = "flow_sde"
    """Flow-GRPO's SDE, or coefficients-preserving sampling."""
    group_size: Annotated[int, Field(ge=2)] = 24
    """Images K of one prompt."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 0.99
    """The first int(fraction x T) steps are SDE steps and are trained; without a window."""
    window_size: Annotated[int, Field(ge=0)] = 0
    """Steps of a random SDE window shared by the whole step's groups; 0 is off."""
    window_low: Annotated[int, Field(ge=0)] = 0
    """First step that a window may start at."""
    window_high: Annotated[int, Field(ge=0)] = 0
    """End (exclusive) of the steps that a window may cover."""
    batch_size: PositiveInt = 24
    """Images in one call of the model."""
    storage_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Latents are rounded through it before their log-prob is taken."""


class Perceptual(Section):
    spaces: tuple[str, ...] = ("pickscore",)
    """Scorers whose encoders span the perceptual spaces that are measured."""
    measure: bool = True
    """Measure them in every group; false: in probes, and where the method needs them."""
    decode: Literal["noisy", "clean"] = "noisy"
    """Decode the samples and means as they are, or their clean predictions."""
    feature_scale: Literal["rms", "unit", "none"] = "rms"
    """Feature norm before the local Gaussian: sqrt(D), 1, or as it comes."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Random scored steps a group; 0 scores every trained step."""
    batch_size: PositiveInt = 48
    """Images in one decode or encode call."""


class Objective(Section):
    clip_low: PositiveFloat = 1e-4
    """Lower clip range of the ratio."""
    clip_high: PositiveFloat = 1e-4
    """Upper clip range of the ratio."""
    advantage_std: Literal["group", "global"] = "global"
    """Whose standard deviation divides the advantage."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are clamped to +- this."""
    kl: NonNegative = 0.0
    """Weight beta of the KL to the reference policy."""
    kl_form: Literal["gaussian", "flow_grpo"] = "gaussian"
    """The true KL of the transitions, or Flow-GRPO's without dt."""
    reference_every: Annotated[int, Field(ge=0)] = 0
    """Learner steps after which the reference policy becomes the present one; 0 is never."""
    reference_kl: NonNegative = 0.0
    """KL to the reference policy at which it does so, too; 0 is never."""


class Learner(Section):
    lr: PositiveFloat = 3e-4
    """AdamW learning rate, constant."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """AdamW betas."""
    eps: PositiveFloat = 1e-8
    """AdamW epsilon."""
    weight_decay: NonNegative = 1e-4
    """AdamW weight decay."""
    max_grad_norm: NonNegative = 1.0
    """Gradient norm clip; 0 is off."""
    updates: PositiveInt = 2
    """Optimizer steps a learner step, each on its share of the images; the first is on policy."""
    micro_batch: PositiveInt = 8
    """Images in one forward and backward pass."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage of the Ray runtime."""
    ema_decay: Probability = 0.9
    """Cap of the EMA's decay min(cap, (1+t)/(10+t)); 0 is off."""
    ema_every: PositiveInt = 8
    """Optimizer steps between EMA updates."""


class Data(Section):
    prompts: str = "shapes/train.jsonl"
    """.txt (a prompt a line) or .jsonl (GenEval's fields); shapes/NAME is the embedded world's."""
    probe_prompts: str = ""
    """Prompts of the probes and the picture grid; the first lines of `prompts` where empty."""
    groups_per_step: PositiveInt = 48
    """Groups that one learner step consumes."""


class Monitor(Section):
    tracking_uri: str = ""
    """MLflow server or database; a sqlite file in run.folder where empty."""
    experiment: str = "percent_ray"
    """MLflow experiment."""
    spaces: tuple[str, ...] = ()
    """Scorers whose features measure diversity (variance, Vendi) in every group."""
    probe_every: Annotated[int, Field(ge=0)] = 20
    """Steps between probes: fixed prompts, fixed noise, pictures. 0 is off."""
    probe_groups: PositiveInt = 4
    """Prompts of a probe."""


class Role(Section):
    workers: PositiveInt = 1
    """Processes."""
    cpus: NonNegative = 1.0
    """CPUs of one worker."""
    gpus: NonNegative = 0.0
    """GPUs of one worker; a fraction shares a card."""
    memory_gb: NonNegative = 0.0
    """Memory that Ray reserves for one worker; 0 reserves none."""


class Runtime(Section):
    backend: Literal["ray", "local"] = "ray"
    """Ray actors, or everything in this process."""
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 1
    """Versions that a consumed group may be behind; 0 is synchronous."""
    rollout: Role = Role(gpus=1)
    perception: Role = Role(gpus=1)
    learner: Role = Role(gpus=1)
    inflight: PositiveInt = 2
    """Groups queued at one actor."""
    timeout_s: PositiveFloat = 1800
    """Longest wait for one group or one update before the run ends with an error."""


class Recipe(Section):
    run: Run = Run()
    model: Model = Model()
    scorers: dict[str, Scorer] = {"pickscore": Scorer(weight=1.0)}  # noqa: RUF012 pydantic copies it
    """By module of percent_ray/scorers."""
    sampling: Sampling = Sampling()
    perceptual: Perceptual = Perceptual()
    method: AnyMethod = METHODS["flow_grpo"](name="flow_grpo")
    """What is added to reward and loss."""
    objective: Objective = Objective()
    learner: Learner = Learner()
    data: Data = Data()
    monitor: Monitor = Monitor()
    runtime: Runtime = Runtime()

    @property
    def trained_images(self) -> int:
        """Images of one learner step."""
        return self.data.groups_per_step * self.sampling.group_size

    def of_method(self, key: str) -> tuple[str, ...]:
        """Scorers that the method names under `key`; none where it has no such parameter."""
        return getattr(self.method, key, ())

    @property
    def image_spaces(self) -> tuple[str, ...]:
        """Every space in which features of finished images are wanted, once."""
        return tuple(dict.fromkeys((*self.of_method("image_spaces"), *self.monitor.spaces)))

    def measured_spaces(self, *, probe: bool) -> tuple[str, ...]:
        """Every space in which the perceptual log-probs of a group's steps are wanted, once."""
        watched = self.perceptual.spaces if probe or self.perceptual.measure else ()
        return tuple(dict.fromkeys((*self.of_method("spaces"), *watched)))

    @property
    def scored(self) -> tuple[str, ...]:
        """The scorers that score: those of the reward, and the method's judges."""
        return tuple(
            name for name, s in self.scorers.items() if s.weight or name in self.of_method("judges")
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """All cross-field problems at once, one a line."""
        problems = [*self._paths(), *self._spaces(), *self._steps(), *self._sizes()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _paths(self) -> Iterator[str]:
        for field in ("prompts", "probe_prompts"):
            path = getattr(self.data, field)
            if path and not locate_prompts(path).is_file():
                yield f"data.{field}: no file {locate_prompts(path)}"
        for field, path in [("model", self.model.path)] + [
            (f"scorers.{name}", scorer.path) for name, scorer in self.scorers.items() if scorer.path
        ]:
            try:
                locate(path)
            except ValueError as error:
                yield f"{field}.path: {error}"

    def _spaces(self) -> Iterator[str]:
        if not any(s.weight for s in self.scorers.values()):
            yield "scorers: none has a weight above 0; set one's weight"
        asked = {
            "perceptual.spaces": self.perceptual.spaces,
            "monitor.spaces": self.monitor.spaces,
            "method.spaces": self.of_method("spaces"),
            "method.image_spaces": self.of_method("image_spaces"),
            "method.judges": self.of_method("judges"),
        }
        for key, names in asked.items():
            for name in names:
                if name not in self.scorers:
                    yield (
                        f"{key}: {name!r} is not among scorers ({', '.join(self.scorers)}); "
                        "add it there with weight 0"
                    )
        if getattr(self.method, "strength", None) == "auto" and not self.monitor.probe_every:
            yield "method.strength auto measures on probes; set monitor.probe_every above 0"

    def _steps(self) -> Iterator[str]:
        s = self.sampling
        if s.window_size:
            if not s.window_low + s.window_size <= s.window_high <= s.steps:
                yield (
                    f"sampling.window_size {s.window_size} does not fit in steps "
                    f"[{s.window_low}, {s.window_high}) of {s.steps}; "
                    "set window_low and window_high"
                )
        elif int(s.train_fraction * s.steps) < 1:
            yield (
                f"sampling.train_fraction {s.train_fraction} of {s.steps} steps trains none; "
                f"set at least {1 / s.steps:.3g}"
            )

    def _sizes(self) -> Iterator[str]:
        share = self.learner.updates * self.runtime.learner.workers * self.learner.micro_batch
        if self.trained_images % share:
            yield (
                f"groups_per_step {self.data.groups_per_step} x group_size "
                f"{self.sampling.group_size} = {self.trained_images} images do not divide into "
                f"learner.updates {self.learner.updates} x runtime.learner.workers "
                f"{self.runtime.learner.workers} x learner.micro_batch {self.learner.micro_batch}"
                f" = {share}; set learner.micro_batch or groups_per_step"
            )
        renewed = self.objective.reference_every or self.objective.reference_kl
        if renewed and self.runtime.backend == "ray" and self.learner.zero_stage == 3:
            yield (
                "objective.reference_every and reference_kl need whole weights on every rank; "
                "set learner.zero_stage to 2 or less"
            )
        if self.runtime.backend == "local" and self.runtime.learner.workers > 1:
            yield (
                f"runtime.backend local has one learner, runtime.learner.workers is "
                f"{self.runtime.learner.workers}; set it to 1 or runtime.backend to ray"
            )
