"""The recipe: one frozen tree, read from YAML and `--dotted.overrides`, checked whole at load.

Defaults are Flow-GRPO's hyper-parameters for SD3.5-M with PickScore; a recipe file holds only what
differs from them. The docstring under a field is its `--help`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from percent_ray.flow import schedule, sde
from percent_ray.flow.sampler import Solver
from percent_ray.objective import forward
from percent_ray.objective.methods.flow_grpo import FlowGrpo
from percent_ray.recipe import bounds
from percent_ray.recipe.objective import Objective
from percent_ray.recipe.paths import locate_pipeline
from percent_ray.recipe.secret import Uri
from percent_ray.recipe.section import AnyMethod, Section

MOST = 48
"""Images in one call under `perceptual.batch_size: auto`, at most."""


class Run(Section):
    name: bounds.Name = "run"
    """Names the run's folder and its MLflow run."""
    folder: bounds.Text = "runs"
    """Runs are written to FOLDER/NAME: of several machines, on storage that all of them share."""
    seed: bounds.Seed = 42
    """Every random draw is a function of it and of ids."""
    steps: bounds.Count = 1000
    """Learner steps (batches consumed) in all."""
    checkpoint_every: bounds.Count = 60
    """Steps between checkpoints; sampling ahead never crosses one, so that resume is exact."""
    keep_checkpoints: bounds.Count = 2
    """Older checkpoints are deleted."""


class Model(Section):
    family: str = "sd3"
    """Module of percent_ray/models."""
    path: bounds.Text = "stabilityai/stable-diffusion-3.5-medium"
    """Diffusers folder, hub id (owner/name, or owner/name@REVISION), or shapes/sd3."""
    resolution: bounds.Pixels | tuple[bounds.Pixels, bounds.Pixels] = 512
    """Of the images, in pixels: both sides, or [height, width]."""
    guidance: bounds.Guidance = 4.5
    """sd3: classifier-free guidance in draw and replay, 1 is off. flux: a value that the model is
    conditioned on, at no extra model call."""
    true_cfg: bounds.Guidance = 1.0
    """flux: classifier-free guidance beside it, at a second model call; 1 is off."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the frozen weights and the activations. Trained weights are float32 under LoRA."""
    t5: bool = True
    """Use the T5 text encoder where the folder has one."""
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 128
    """T5 tokens; without T5 the width of its zeros."""
    lora_rank: Annotated[int, Field(ge=0, le=4096)] = 32
    """0 trains every weight of the transformer."""
    lora_alpha: Annotated[int, Field(ge=1, le=65_536)] = 64
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
    compile: bool = False
    """torch.compile of the repeated blocks, minutes at the first calls. Draw and replay then round
    differently: in bfloat16 set objective.old_log_prob replayed."""

    @property
    def folder(self) -> str:
        return locate_pipeline(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        side = self.resolution
        return (side, side) if isinstance(side, int) else side


class Scorer(Section):
    kind: str = ""
    """Module of percent_ray/scorers; the scorer's name where empty."""
    path: str = ""
    """Folder, hub id, shapes/NAME, or a weights file or URL where the kind takes one (http and
    unifiedreward take a URL only); the kind's own default where empty."""
    color_path: str = ""
    """geneval: folder or hub id of the CLIPModel that names colours in real pictures; OpenAI's
    ViT-L/14 where empty."""
    verdict: Annotated[float, Field(ge=0, le=1)] = 0.0
    """geneval: share of the official verdict, 0 or 1, in its score; the rest is the graded reward
    of Flow-GRPO, but for a position that fails: 0, and a half there."""
    served_model: str = ""
    """unifiedreward: what the model is called at the server; UnifiedReward where empty."""
    token_env: str = ""
    """http, unifiedreward: the environment variable that holds the server's bearer token, on every
    machine that scores; no token is sent where empty."""
    timeout_s: bounds.Seconds = 60.0
    """http, unifiedreward: longest wait for one answer."""
    weight: bounds.Weight = 0.0
    """Of its score in the reward; 0 when it only encodes or only reports."""
    normalize: bool = False
    """Take the group's mean off its score and divide by the group's std before it is weighted, so
    that scorers of unlike spreads count by their weights. Metrics report the score as it is."""
    batch_size: bounds.Batch = 48
    """Images that it scores or encodes in one call."""
    required: bool = True
    """A group whose required reward fails is dropped and counted; an optional one counts there as
    its mean over the step's other groups."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 2
    """Calls after the first one that fails or is not finite."""


class Sampling(Section):
    steps: bounds.Steps = 10
    """Denoising steps T."""
    noise_level: Annotated[float, Field(ge=0.001, le=10)] = 0.7
    """Eta of the SDE."""
    kind: sde.Kind = "flow_sde"
    """Flow-GRPO's SDE, coefficients-preserving sampling, or DanceGRPO's SDE."""
    solver: Solver = "euler"
    """Of the ODE that the forward process samples by: Euler, or DPM-Solver++ 2M."""
    group_size: Annotated[int, Field(ge=2, le=65_536)] = 24
    """Images K of one prompt."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 0.99
    """The first int(fraction x T) steps are SDE steps and are trained; without a window."""
    window_size: bounds.StepsOrOff = 0
    """Steps of a random SDE window shared by the whole step's groups; 0 is off."""
    window_low: bounds.StepsOrOff = 0
    """First step that a window may start at."""
    window_high: bounds.StepsOrOff = 0
    """End (exclusive) of the steps that a window may cover."""
    batch_size: bounds.Batch = 24
    """Images in one call of the model."""
    storage_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Latents are rounded through it before their log-prob is taken, and finished ones."""


class Perceptual(Section):
    spaces: tuple[str, ...] = ("pickscore",)
    """Scorers whose encoders span the perceptual spaces that are measured."""
    measure: bool = True
    """Measure them in every group; false: in probes, and where the method needs them."""
    decode: Literal["noisy", "clean"] = "noisy"
    """Decode the samples and means as they are, or their clean predictions."""
    decoder: Literal["full", "tiny"] = "full"
    """Of the scored samples and means: the VAE, or an AutoencoderTiny at a fraction of its cost.
    Finished images are always the VAE's."""
    tiny_path: str = ""
    """Folder, hub id or shapes/tiny of the AutoencoderTiny; that of the model's family where
    empty."""
    feature_scale: Literal["rms", "unit", "none"] = "rms"
    """Feature norm before the local Gaussian: sqrt(D), 1, or as it comes."""
    steps: bounds.StepsOrOff = 0
    """Random scored steps a group; 0 scores every trained step."""
    batch_size: bounds.Batch | Literal["auto"] = MOST
    """Images in one call of a decoder; auto: as many of 48 as fit a GPU when all is loaded."""


class Forward(Section):
    """Learning on the forward process, where `learner.process` is forward."""

    loss: forward.Loss = "nft"
    """DiffusionNFT's, or advantage-weighted matching with the objective's clip ranges."""
    beta: Annotated[float, Field(ge=0.0001, le=1000)] = 1.0
    """b of NFT: how far v+ and v- lie from the old velocity; published 1, or 0.1 for OCR."""
    times: bounds.StepsOrOff = 0
    """Fresh noises of an image, each at its own time; 0 is as many as train_fraction x steps."""
    distribution: forward.Times = "schedule"
    """Of those times: the sampler's sigmas, or s u / (1 + (s - 1) u) with u uniform."""
    shift: Annotated[float, Field(ge=0.001, le=1000)] = 3.0
    """s of `shifted`; 1 is uniform."""


class Old(Section):
    """d = min(most, first + rise x max(0, step - after)), step in learner steps."""

    first: bounds.Fraction = 0.0
    """d at first: old <- d old + (1 - d) trained; 0 draws with the trained weights."""
    rise: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Of d, each step."""
    after: bounds.CountOrOff = 0
    """Steps before d rises."""
    most: bounds.Fraction = 0.5
    """Cap of d."""


class Learner(Section):
    process: Literal["reverse", "forward"] = "reverse"
    """Replay noisy denoising steps (GRPO), or flow matching on finished images (`forward`)."""
    old: Old = Old()
    lr: bounds.Rate = 3e-4
    """AdamW learning rate, at first."""
    lr_half_life: bounds.CountOrOff = 0
    """Learner steps after which it is half, and half again; 0 keeps it."""
    betas: tuple[bounds.Fraction, bounds.Fraction] = (0.9, 0.999)
    """AdamW betas."""
    eps: Annotated[float, Field(ge=1e-20, le=1)] = 1e-8
    """AdamW epsilon."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-4
    """AdamW weight decay."""
    max_grad_norm: bounds.Weight = 1.0
    """Gradient norm clip; 0 is off."""
    updates: bounds.Count = 2
    """Optimizer steps a learner step, each on its share of every group's images; under GRPO the
    first is on policy where `runtime.max_staleness` is 0."""
    micro_batch: bounds.Batch = 8
    """Images in one forward and backward pass."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage of the Ray runtime."""
    ema_decay: bounds.Fraction = 0.9
    """Cap of the EMA's decay min(cap, (1+t)/(10+t)); 0 is off."""
    ema_every: bounds.Count = 8
    """Optimizer steps between EMA updates."""


class Data(Section):
    prompts: bounds.Text = "shapes/train.jsonl"
    """.txt (a prompt a line) or .jsonl (GenEval's fields); shapes/NAME is the embedded world's."""
    probe_prompts: str = ""
    """Prompts of the probes and the picture grid; the first lines of `prompts` where empty."""
    groups_per_step: bounds.Batch = 48
    """Groups that one learner step consumes."""


class Monitor(Section):
    tracking_uri: Uri = ""
    """MLflow server or database; a sqlite file in run.folder where empty. Its user, password and
    query are written nowhere: give it again with --resume."""
    experiment: bounds.Text = "percent_ray"
    """MLflow experiment."""
    spaces: tuple[str, ...] = ()
    """Scorers whose features measure diversity (variance, Vendi) in every group."""
    probe_every: bounds.CountOrOff = 20
    """Steps between probes: fixed prompts, fixed noise, pictures. 0 is off."""
    probe_groups: bounds.Batch = 4
    """Prompts of a probe."""
    alarm_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A line warns when the pixel variance or Vendi of the probes falls below this share of the
    first probe's; 0 is off."""


class Role(Section):
    workers: bounds.Workers = 1
    """Processes; where max_workers is set, at the start and at least."""
    max_workers: bounds.Workers | Literal[0] = 0
    """rollout, perception: the pool grows to at most so many while the learner waits for groups,
    and shrinks where they idle; 0 keeps its size."""
    cpus: bounds.Amount = 1.0
    """CPUs of one worker."""
    gpus: bounds.Amount = 0.0
    """GPUs of one worker; a fraction shares a card."""
    memory_gb: bounds.Amount = 0.0
    """Memory that Ray reserves for one worker; 0 reserves none."""


class Runtime(Section):
    backend: Literal["ray", "local"] = "ray"
    """Ray actors, or everything in this process."""
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 1
    """Versions that a consumed group may be behind; 0 is synchronous."""
    rollout: Role = Role(gpus=1)
    perception: Role = Role(gpus=1)
    learner: Role = Role(gpus=1)
    inflight: bounds.Batch = 2
    """Groups queued at one actor."""
    timeout_s: bounds.Seconds = 1800
    """Longest wait for one group or one update before the run ends with an error."""
    max_failures: bounds.CountOrOff = 3
    """How often a learner group that has died is built again from the last checkpoint before the
    run ends; a new checkpoint starts the count anew."""


class Recipe(Section):
    run: Run = Run()
    model: Model = Model()
    scorers: dict[str, Scorer] = {"pickscore": Scorer(weight=1.0)}  # noqa: RUF012 pydantic copies it
    """By name; two names may be of one kind."""
    sampling: Sampling = Sampling()
    perceptual: Perceptual = Perceptual()
    method: AnyMethod = FlowGrpo()
    """What is added to reward and loss."""
    objective: Objective = Objective()
    forward: Forward = Forward()
    learner: Learner = Learner()
    data: Data = Data()
    monitor: Monitor = Monitor()
    runtime: Runtime = Runtime()

    @property
    def trained_images(self) -> int:
        """Images of one learner step."""
        return self.data.groups_per_step * self.sampling.group_size

    @property
    def learner_ranks(self) -> int:
        """Processes that learn together."""
        return self.runtime.learner.workers if self.runtime.backend == "ray" else 1

    @property
    def groups_in_flight(self) -> int:
        """Of those that are learned from, at most, from being sampled to being published."""
        return self.data.groups_per_step * (self.runtime.max_staleness + 1)

    @property
    def is_forward(self) -> bool:
        """Whether the forward process is learned from, which has no trajectories."""
        return self.learner.process == "forward"

    @property
    def needs_probes(self) -> bool:
        """Whether the method measures on probes."""
        return getattr(self.method, "strength", None) == "auto"

    @property
    def has_kl(self) -> bool:
        """Whether a KL to the reference is taken: the objective's, or GARDO's own."""
        return bool(self.objective.kl or self.of_method("judges"))

    def trained_steps(self, group_id: int) -> range:
        """The SDE steps of a group: one range for every group of a learner step, none in the
        forward process. Probe groups (negative ids) all take that of step 0, so that they can be
        compared along a run.

        Raises ValueError for a window that does not fit, and where no step would be trained.
        """
        sampling = self.sampling
        if self.is_forward:
            return range(0)
        if not sampling.window_size:
            return schedule.trained_steps(sampling.steps, fraction=sampling.train_fraction)
        return schedule.sde_window(
            sampling.steps,
            size=sampling.window_size,
            low=sampling.window_low,
            high=sampling.window_high,
            seed=self.run.seed,
            iteration=max(group_id, 0) // self.data.groups_per_step,
        )

    def of_method(self, key: str) -> tuple[str, ...]:
        """Scorers that the method names under `key`; none where it has no such parameter."""
        return getattr(self.method, key, ())

    @property
    def image_spaces(self) -> tuple[str, ...]:
        """Every space in which features of finished images are wanted, once."""
        return tuple(dict.fromkeys((*self.of_method("image_spaces"), *self.monitor.spaces)))

    def measured_spaces(self, *, probe: bool) -> tuple[str, ...]:
        """Every space in which the perceptual log-probs of a group's steps are wanted, once; none
        in the forward process, which has no steps."""
        if self.is_forward:
            return ()
        watched = self.perceptual.spaces if probe or self.perceptual.measure else ()
        return tuple(dict.fromkeys((*self.of_method("spaces"), *watched)))

    @property
    def scored_images(self) -> int:
        """Samples and means of a group that are decoded to be scored, where any are."""
        if not self.measured_spaces(probe=True):
            return 0
        steps = len(self.trained_steps(0))
        return 2 * self.sampling.group_size * min(self.perceptual.steps or steps, steps)

    @property
    def scores_by_tiny(self) -> bool:
        """Whether a tiny decoder is loaded: only where transitions are scored."""
        return self.perceptual.decoder == "tiny" and bool(self.scored_images)

    @property
    def scored(self) -> tuple[str, ...]:
        """The scorers that score: those of the reward, and the method's judges."""
        return tuple(
            name for name, s in self.scorers.items() if s.weight or name in self.of_method("judges")
        )

    def kind_of(self, scorer: str) -> str:
        """Module of a scorer."""
        return self.scorers[scorer].kind or scorer

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """All cross-field problems at once, one a line."""
        from percent_ray.recipe.check import problems

        if found := list(problems(self)):
            raise ValueError("\n".join(found))
        return self
