"""What work would take, found on the meta device: it has every shape and no number."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that are alive at one time of what `work` makes: on any device, backward
    passes included. What there was before it does not count."""
    with _fused_attention(), _Living() as living:
        work()
    return living.peak


def flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products, convolutions and attentions of `work`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


class _Living(TorchDispatchMode):
    """Follows every storage from the operation that makes it to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}
        """Bytes by storage."""
        self._sum = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(_storage(tensor), given)
        return result

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._alive or key in given:  # a view, or what was there before
            return
        self._alive[key] = storage.nbytes()
        self._sum += storage.nbytes()
        self.peak = max(self.peak, self._sum)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._sum -= self._alive.pop(key)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as the fused kernels of every device have it, which keep no weights: the meta
    device would fall back to the plain products."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        options = {"attn_mask": attn_mask, "scale": scale}
        return fused(query, key, value, dropout_p, is_causal, **options)[0]

    with patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield
