"""Random state dicts under published names, and files of them."""

import pytest
import torch
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from percent_ray.recipe.tree import Scorer
from percent_ray.scorers.base import load_scorer

Shapes = dict[str, tuple[int, ...]]


def layer(name: str, out: int, inside: int) -> Shapes:
    """A linear layer."""
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def random_state(shapes: Shapes, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values at which every layer changes the result."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(shape, generator=source)
        + float(len(shape) == 1 and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def meta_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def normed(x, state, name, *, eps):
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def dense(x, state, name):
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def attended(query, key, value, heads, mask=None):
    """Of tensors [N, length, width]."""
    parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    return scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)


def images(*, height: int = 40, width: int = 24) -> torch.Tensor:
    """Three smooth pictures, uint8, neither square nor of a model's size."""
    coarse = torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return smooth.clamp(0, 1).mul(255).to(torch.uint8)


def refusal(kind: str, path: str) -> str:
    """The line with which a scorer of that kind and path is refused, without its name."""
    with pytest.raises(ValueError, match=r"^scorers\.mine: ") as caught:
        load_scorer("mine", Scorer(kind=kind, path=path), device=torch.device("cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("scorers.mine: ")


def damaged(state, *, drop: str = "", add: str = "", cut: str = ""):
    """The state dict without a weight, with one more, or with the first 6 rows of one."""
    state = {name: value for name, value in state.items() if name != drop}
    if add:
        state[add] = torch.zeros(3)
    if cut:
        state[cut] = state[cut][:6]
    return state
