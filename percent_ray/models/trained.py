"""The transformer that is trained, by a LoRA adapter or whole: what the model families share."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from percent_ray.models import lora, pretrained
from percent_ray.recipe import tree

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Trained:
    """A diffusers transformer with its scheduler. A family's `Policy` (models/base.py) is a
    subclass with `encode` and `velocity`."""

    pipeline: ClassVar[str]
    """Its diffusers pipeline, which reads what is saved."""
    transformer: ClassVar[str]
    """The diffusers class of what is trained."""

    def __init__(
        self,
        model: tree.Model,
        network: Any,
        scheduler: Any,
        *,
        latent_shape: tuple[int, int, int],
        tokens: int,
        device: torch.device,
    ) -> None:
        self.module: nn.Module = network
        self.latent_shape = latent_shape
        self._model = model
        self._network = network
        self._scheduler = scheduler
        self._tokens = tokens
        """Image tokens of one latent, which a dynamic shift depends on."""
        self._device = device
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._frozen: nn.Module | None = None

    def sigmas(self, steps: int) -> Float32[Tensor, " T+1"]:
        """The scheduler's sigmas as the pipeline sets them: 1 down to 0, on the CPU."""
        shift = {}
        if self._scheduler.config.use_dynamic_shifting:
            shift["mu"] = self._dynamic_shift()
        self._scheduler.set_timesteps(steps, device="cpu", **shift)
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
            network = read(self._model, self.transformer)
            self._frozen = network.requires_grad_(False).to(self._device)
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
        from safetensors.torch import save_file

        if self._model.lora_rank:
            lora.save(self._network, getattr(diffusers, self.pipeline), folder, weights)
            return
        state = self._network.state_dict() | dict(weights)
        self._network.save_config(folder)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
            Path(folder) / WEIGHTS,
            metadata={"format": "pt"},
        )

    @torch.no_grad()
    def load(self, folder: str) -> None:
        """Take the weights that `save` wrote. Raises ValueError where they are of another model."""
        from safetensors.torch import load_file

        adapted = bool(self._model.lora_rank)
        weights = lora.load(folder) if adapted else load_file(Path(folder) / WEIGHTS)
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
        if not self._model.lora_rank:
            return f"{base}{whole:,} weights, none missing, all trained in {dtype}"
        return (
            f"{base}{whole - count:,} weights in {self._model.dtype}, none missing; LoRA rank "
            f"{self._model.lora_rank}, alpha {self._model.lora_alpha} on "
            f"{lora.adapted_layers(trained, self._model.lora_targets)}, {count:,} weights trained "
            f"in {dtype}"
        )


def read(model: tree.Model, transformer: str) -> Any:
    """The transformer of `model.path` in `model.dtype`, on the CPU; every weight of it or an
    error."""
    import diffusers

    return pretrained.load(
        getattr(diffusers, transformer),
        model.folder,
        part="model.path: transformer",
        subfolder="transformer",
        torch_dtype=getattr(torch, model.dtype),
    )


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
    return network.to(device)


def scheduler(model: tree.Model) -> Any:
    """The flow-matching scheduler of `model.path`."""
    from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler

    settings = pretrained.config(
        Scheduler, model.folder, part="model.path: scheduler", subfolder="scheduler"
    )
    return Scheduler.from_config(settings)


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
    return found


def latent_side(model: tree.Model, *, patch: int, largest: int) -> int:
    """Height and width of a latent at `model.resolution`.

    `patch` is the transformer's patch size in latent pixels, `largest` the most patches on a side.
    Raises ValueError for a resolution that does not fit.
    """
    from diffusers import AutoencoderKL

    vae = pretrained.config(AutoencoderKL, model.folder, part="model.path: vae", subfolder="vae")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = scale * patch
    if model.resolution % multiple or model.resolution > multiple * largest:
        raise ValueError(
            f"model.resolution {model.resolution} does not fit this model; "
            f"set a multiple of {multiple} up to {multiple * largest}"
        )
    return model.resolution // scale
