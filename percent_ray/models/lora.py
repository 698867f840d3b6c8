"""LoRA adapters on a diffusers transformer, through peft. Shared by the model families."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"


def add(network: Any, *, rank: int, alpha: int, targets: Sequence[str], seed: int) -> None:
    """Freeze `network` (a diffusers transformer, on the CPU) and give it a float32 adapter.

    Layers whose names end in one of `targets` are adapted. The first weights are a function of
    `seed` alone: the global generator is left as it was, and B is zero, so that the network still
    computes what it did. Raises ValueError that names the targets that match no linear layer.
    """
    from peft import LoraConfig

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    missing = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in layers)]
    if missing or not targets:
        raise ValueError(
            f"model.lora_targets: no linear layer of {type(network).__name__} ends in "
            f"{', '.join(missing) or '()'}; name suffixes such as {_suffix(layers)}"
        )
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network.add_adapter(config, ADAPTER)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapted_layers(trained: Mapping[str, Any], targets: Sequence[str]) -> str:
    """The layers of trained adapter weights, counted and listed by target."""
    layers = {name.partition(".lora_")[0] for name in trained}
    # The longest target that fits: `attn.to_q` and `to_q` are one layer's.
    by_layer = [max((t for t in targets if f".{x}".endswith(f".{t}")), key=len) for x in layers]
    counts = ", ".join(f"{target} x{by_layer.count(target)}" for target in targets)
    return f"{len(layers)} layers ({counts})"


def _suffix(layers: Sequence[str]) -> str:
    """The last layer's name without its block's number, as an example."""
    blocks = [name.split(".", 2)[-1] for name in layers if name.count(".") > 2]
    return (blocks or list(layers))[-1]


HEADER = ("r", "lora_alpha", "target_modules", "lora_dropout", "bias", "use_dora", "use_rslora")
"""Of peft's settings those that go into a file: diffusers gives all of them to the reader's
`LoraConfig`, and an older one refuses what newer versions have added."""


@contextmanager
def disabled(network: Any) -> Iterator[None]:
    """Inside, `network` computes what it did before it had an adapter."""
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()


def save(network: Any, pipeline: Any, folder: str, weights: Mapping[str, Tensor]) -> None:
    """Write the adapter `weights` (named as the parameters of `network`) to `folder` in the form
    that the diffusers class `pipeline` reads in `load_lora_weights`.

    The adapter's rank and alpha go along: a reader without them would assume a scale of 1.
    """
    layers = {n: weight.detach().cpu().contiguous() for n, weight in named(weights).items()}
    config = network.peft_config[ADAPTER].to_dict()
    pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata={name: config[name] for name in HEADER},
    )


def named(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapter weights by the names that files have, without peft's name of the adapter."""
    return {name.replace(f".{ADAPTER}.", "."): weight for name, weight in weights.items()}


def load(folder: str) -> dict[str, Tensor]:
    """The adapter weights that `save` wrote, by their names in the network."""
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
    from safetensors.torch import load_file

    layers = load_file(Path(folder) / LORA_WEIGHT_NAME_SAFE)
    return {
        name.removeprefix("transformer.").replace(".weight", f".{ADAPTER}.weight"): weight
        for name, weight in layers.items()
    }
