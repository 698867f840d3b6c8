"""The transformer that is trained, by a LoRA adapter or whole: what the model families share."""

import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from percent_ray.models import decoder, lora, pretrained
from percent_ray.models.base import Condition
from percent_ray.models.text import check_index
from percent_ray.recipe import tree
from percent_ray.recipe.errors import first_line

WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
"""The files of a transformer, as diffusers names them."""
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARD = "5GB"
"""Most weights in one of them."""
COMPILERS = "gcc", "cc", "clang"
"""One of them makes the kernels of compiled blocks, or on a GPU what launches them."""
KERNELS = 64
"""Most variants of a compiled block: by kind of block, shapes, gradients and adapter on or off."""


class Trained(ABC):
    """A diffusers transformer with its scheduler. A family's `Policy` (models/base.py) is a
    subclass that knows how its pipeline embeds prompts and calls the transformer."""

    pipeline: ClassVar[str]
    """Its diffusers pipeline, which reads what is saved."""
    transformer: ClassVar[str]
    """The diffusers class of what is trained."""
    linear_sigmas: ClassVar[bool] = False
    """Whether its pipeline hands the scheduler T sigmas from 1 to 1/T, in the place of the
    scheduler's own."""

    def __init__(
        self,
        model: tree.Model,
        network: Any,
        scheduler: Any,
        encoder: Any,
        *,
        latent_shape: tuple[int, int, int],
        patch: int,
        cfg: float,
        device: torch.device,
    ) -> None:
        self.module: nn.Module = network
        self.latent_shape = latent_shape
        self._model = model
        self._network = network
        self._scheduler = scheduler
        self._encoder = encoder
        """Its diffusers pipeline with the text parts alone, or None."""
        self._tokens = math.prod(side // patch for side in latent_shape[1:])
        """Image tokens of one latent, which a dynamic shift depends on."""
        self._cfg = cfg
        """Weight of classifier-free guidance; 1 is off."""
        self._device = device
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        """Of the frozen weights and the activations."""
        self._frozen: nn.Module | None = None

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """What the pipeline's encode_prompt yields for N prompts, in the model's dtype on its
        device: `prompt_embeds` [N, L, D], `pooled_prompt_embeds` [N, P], and both with `negative_`
        in front for the empty prompt where classifier-free guidance is on."""
        if self._encoder is None:
            raise ValueError("this policy has no text encoders; load it with text=True")
        condition = self._embed(texts)
        if self._cfg > 1:
            empty = self._embed([""] * len(texts))
            condition |= {f"negative_{name}": tensor for name, tensor in empty.items()}
        return condition

    def velocity(
        self, latents: Float[Tensor, "B C H W"], sigma: Float32[Tensor, " B"], condition: Condition
    ) -> Float32[Tensor, "B C H W"]:
        """u + cfg (c - u), in float32 on the model's device. A condition has 1 or B rows.

        The two branches are two passes: u carries no gradient, and a draw and its replay run the
        same shapes through the same kernels, which keeps the first ratio at 1.
        """
        conditional = self._branch(latents, sigma, condition, "")
        if self._cfg == 1:
            return conditional
        with torch.no_grad():
            unconditional = self._branch(latents, sigma, condition, "negative_")
        return unconditional + self._cfg * (conditional - unconditional)

    def _branch(
        self, latents: Tensor, sigma: Tensor, condition: Condition, branch: str
    ) -> Float32[Tensor, "B C H W"]:
        def rows(name: str) -> Tensor:
            # Contiguous: over an expanded row, with stride 0, other kernels round otherwise than
            # over the replay's rows.
            tensor = condition[f"{branch}{name}"].to(self._device, self.dtype)
            return tensor.expand(len(latents), *tensor.shape[1:]).contiguous()

        return self._predict(
            latents.to(self._device, self.dtype),
            sigma.to(self._device),
            rows("prompt_embeds"),
            rows("pooled_prompt_embeds"),
        )

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of one prompt's condition, known without text encoders."""
        config = self._network.config
        shapes = {
            "prompt_embeds": (self._text_tokens(), config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }
        negative = {f"negative_{name}": shape for name, shape in shapes.items()}
        return shapes | (negative if self._cfg > 1 else {})

    @abstractmethod
    def _text_tokens(self) -> int:
        """Tokens of an encoded prompt."""

    @abstractmethod
    def _embed(self, texts: Sequence[str]) -> Condition:
        """`prompt_embeds` and `pooled_prompt_embeds` of the pipeline's encode_prompt."""

    @abstractmethod
    def _predict(
        self, latents: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor
    ) -> Float32[Tensor, "B C H W"]:
        """The transformer's velocity; but for sigma everything is in the model's dtype, B rows."""

    def sigmas(self, steps: int) -> Float32[Tensor, " T+1"]:
        """The scheduler's sigmas as the pipeline sets them: 1 down to 0, on the CPU."""
        config = self._scheduler.config
        options: dict[str, Any] = {}
        if config.use_dynamic_shifting:
            options["mu"] = self._dynamic_shift()
        if self.linear_sigmas:
            options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        self._scheduler.set_timesteps(steps, device="cpu", **options)
        return self._scheduler.sigmas.to("cpu", torch.float32, copy=True)

    def _dynamic_shift(self) -> float:
        """The pipelines' mu: a line through (base tokens, base shift) and (most, max shift)."""
        c = self._scheduler.config
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        return c.base_shift + slope * (self._tokens - c.base_image_seq_len)

    def reference(self) -> AbstractContextManager[None]:
        """Inside, `velocity` is that of the model before training.

        Under LoRA the adapter is off. In full fine-tuning `module` is a frozen copy, read from
        `model.path` at the first use: the original whenever that is, also in a resumed run, and
        memory for a second transformer only where a reference is used.
        """
        return lora.disabled(self._network) if self._model.lora_rank else self._original()

    @contextmanager
    def _original(self) -> Iterator[None]:
        if self._frozen is None:
            network = read(self._model, self.transformer, self._device)
            self._frozen = network.requires_grad_(False).to(self._device)
            _compile(self._model, network)
        trained, self.module = self.module, cast(nn.Module, self._frozen)
        try:
            yield
        finally:
            self.module = trained

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The trained parameters by their names in the transformer: the adapter's, or all."""
        return {n: p for n, p in self._network.named_parameters() if p.requires_grad}

    def save(self, folder: str, weights: Mapping[str, Tensor]) -> None:
        """Write `weights` (by the names of `trainable`) as safetensors: a file for the pipeline's
        `load_lora_weights(folder)`, or in full fine-tuning a folder for the transformer's
        `from_pretrained(folder)`."""
        import diffusers
        from huggingface_hub import split_torch_state_dict_into_shards
        from safetensors.torch import save_file

        if self._model.lora_rank:
            lora.save(self._network, getattr(diffusers, self.pipeline), folder, weights)
            return
        state = self._network.state_dict() | dict(weights)
        self._network.save_config(folder)
        split = split_torch_state_dict_into_shards(
            state, filename_pattern=WEIGHTS, max_shard_size=SHARD
        )
        for file, names in split.filename_to_tensors.items():
            shard = {name: state[name].detach().cpu().contiguous() for name in names}
            save_file(shard, Path(folder) / file, metadata={"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (Path(folder) / INDEX).write_text(json.dumps(index, indent=1))

    @torch.no_grad()
    def load(self, folder: str) -> None:
        """Take the weights that `save` wrote. Raises ValueError where they are of another model."""
        adapted = bool(self._model.lora_rank)
        weights = saved(folder, self._model)
        trained = self.trainable()
        wrong = [n for n in trained if n not in weights or weights[n].shape != trained[n].shape]
        if wrong or (adapted and len(weights) != len(trained)):
            raise ValueError(
                f"{folder} has {len(weights)} weights, {len(wrong)} of this model's {len(trained)} "
                "are not there in their size; set model.lora_rank and lora_targets as in training"
            )
        for name, parameter in trained.items():
            parameter.copy_(weights[name])

    def describe(self) -> str:
        """What was loaded and what of it is trained."""
        trained = self.trainable()
        count = pretrained.count(trained.values())
        whole = pretrained.count(self._network.parameters())
        dtype = str(next(iter(trained.values())).dtype).removeprefix("torch.")
        base = f"policy: {self.transformer} of {self._model.path}, "
        read_from = self._variants()
        if self._model.compile:
            read_from += (
                f"; its {len(blocks(self._network))} repeated blocks are compiled at the first "
                "calls, which takes minutes"
            )
        if not self._model.lora_rank:
            return f"{base}{whole:,} weights, none missing, all trained in {dtype}{read_from}"
        return (
            f"{base}{whole - count:,} weights in {self._model.dtype}, none missing; LoRA rank "
            f"{self._model.lora_rank}, alpha {self._model.lora_alpha} on "
            f"{lora.adapted_layers(trained, self._model.lora_targets)}, {count:,} weights trained "
            f"in {dtype}{read_from}"
        )

    def _variants(self) -> str:
        """Which of its parts were read from a variant of their weights."""
        if self._device.type == "meta":
            return ""
        text = {} if self._encoder is None else self._encoder.components
        encoders = [name for name, part in text.items() if name.startswith("text_encoder") and part]
        return pretrained.variants(self._model.path, ["transformer", *encoders])


def saved(folder: str, model: tree.Model) -> dict[str, Tensor]:
    """The weights that `Trained.save` wrote, mapped from its files: the adapter's, or all."""
    from safetensors.torch import load_file

    if model.lora_rank:
        return dict(lora.load(folder))
    weights: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob(WEIGHTS.format(suffix="*"))):
        weights |= load_file(file)
    return weights


def read(model: tree.Model, transformer: str, device: torch.device) -> Any:
    """The transformer of `model.path` in `model.dtype`, on the CPU; every weight of it or an error.
    For the meta device its shapes alone, from its config."""
    import diffusers

    kind, dtype = getattr(diffusers, transformer), getattr(torch, model.dtype)
    part = {"part": "model.path: transformer", "subfolder": "transformer"}
    if device.type == "meta":
        return pretrained.skeleton(kind, model.folder, **part, dtype=dtype).requires_grad_(True)
    return pretrained.load(kind, model.folder, **part, torch_dtype=dtype)


def adapt(model: tree.Model, network: Any, *, seed: int, device: torch.device) -> Any:
    """`network` ready to be trained on `device`: with its adapter, where the recipe has one, whose
    first weights are a function of `seed`."""
    if model.lora_rank:
        lora.add(
            network,
            rank=model.lora_rank,
            alpha=model.lora_alpha,
            targets=model.lora_targets,
            seed=seed,
        )
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.to(device)
    _compile(model, network)
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: what its own lists of layers hold."""
    return [b for child in network.children() if isinstance(child, nn.ModuleList) for b in child]


def _compile(model: tree.Model, network: nn.Module) -> None:
    """Compile the repeated blocks in place, which keeps every name, where the recipe asks for it
    and there is something to compute. diffusers' own `compile_repeated_blocks` knows no blocks of
    SD3. Raises ValueError where there is no C compiler."""
    if not model.compile or next(network.parameters()).device.type == "meta":
        return
    named = os.environ.get("CC")
    if not any(map(shutil.which, [named] if named else COMPILERS)):
        raise ValueError(
            f"model.compile true needs a C compiler and none of {named or ', '.join(COMPILERS)} is "
            "found; install one or set it to false"
        )
    import torch._dynamo.config as limits

    limits.recompile_limit = max(limits.recompile_limit, KERNELS)
    for block in blocks(network):
        # Not dynamic: a kernel then depends on its shapes and not on those seen before, so that a
        # resumed run has the same ones. And whole: what cannot be compiled is an error.
        block.compile(dynamic=False, fullgraph=True)


def scheduler(model: tree.Model) -> Any:
    """The flow-matching scheduler of `model.path`. Raises ValueError for another class, whose
    sigmas this one would not have, for sigmas that do not fall to 0, and for one that adds noise of
    its own."""
    from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler

    settings = pretrained.config(
        Scheduler, model.folder, part="model.path: scheduler", subfolder="scheduler"
    )
    if settings.get("stochastic_sampling"):
        raise ValueError(
            f"model.path: scheduler of {model.path}: its scheduler_config.json has "
            "stochastic_sampling true; set it to false: the noise of training is "
            "sampling.noise_level's"
        )
    try:
        found = Scheduler.from_config(settings)
        _check_sigmas(found)
    except Exception as error:  # of settings of other types and ranges
        raise ValueError(
            f"model.path: scheduler of {model.path}: its scheduler_config.json gives no sigmas "
            f"that fall to 0 ({first_line(error)}); give it as it was published"
        ) from error
    return found


def _check_sigmas(scheduler: Any) -> None:
    """Raises ValueError, and whatever diffusers does, for settings that make no schedule."""
    dynamic = scheduler.config.use_dynamic_shifting
    if dynamic and scheduler.config.max_image_seq_len == scheduler.config.base_image_seq_len:
        raise ValueError("max_image_seq_len and base_image_seq_len are one number")
    scheduler.set_timesteps(10, device="cpu", **({"mu": 1.0} if dynamic else {}))
    sigmas = scheduler.sigmas
    if not (sigmas.diff() < 0).all() or sigmas[0] > 1 or sigmas[-1] != 0:
        raise ValueError(", ".join(f"{sigma:.3g}" for sigma in sigmas))


def index(model: tree.Model, pipeline: str) -> Mapping[str, Any]:
    """model_index.json of `model.path`. Raises ValueError where that is not a `pipeline`."""
    from diffusers import DiffusionPipeline

    found = pretrained.config(DiffusionPipeline, model.folder, part="model.path: pipeline")
    kind = found.get("_class_name")
    if kind != pipeline:
        raise ValueError(
            f"model.path: {model.path} is of class {kind}, not {pipeline}; "
            "set model.path or model.family"
        )
    check_index(found, model)
    return found


def latent_size(
    model: tree.Model, patch: int, *, channels: int, largest: int | None = None
) -> tuple[int, int]:
    """Height and width of a latent at `model.resolution`.

    `patch` is the transformer's patch size in latent pixels, `channels` are those of its latents,
    `largest` the most patches on a side. Raises ValueError for a resolution that does not fit, and
    for a VAE of other latents.
    """
    from diffusers import AutoencoderKL

    vae = pretrained.config(AutoencoderKL, model.folder, part="model.path: vae", subfolder="vae")
    decoded, scale = decoder.layout(vae, of=f"model.path: vae of {model.path}")
    if decoded != channels:
        raise ValueError(
            f"model.path: vae of {model.path}: its config.json gives latents of {decoded} channels "
            f"and the transformer's has {channels}; give a folder with both of one model"
        )
    multiple = scale * patch
    most = None if largest is None else multiple * largest
    if any(side % multiple or (most is not None and side > most) for side in model.size):
        raise ValueError(
            f"model.resolution {model.resolution} does not fit this model; "
            f"set a multiple of {multiple}" + (f" up to {most}" if most is not None else "")
        )
    height, width = model.size
    return height // scale, width // scale
