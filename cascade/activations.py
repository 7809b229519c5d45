"""How much memory sampling takes beside the weights, counted on the meta device: no weights, no time.

What a kernel needs for itself is not seen (workspaces of convolutions, a backend's copies of weights), nor what an
allocator wastes. Attention counts as a kernel that keeps no matrix of scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cascade.randomness import Draws
from cascade.stage import Stage
from conditioning.text import TextEmbedding


class _Peak(TorchDispatchMode):
    """Counts the bytes of the tensors on a device that are alive. known: those that are not to be counted."""

    def __init__(self, device: str, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device, self.now, self.most = device, 0, 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            weakref.finalize(storage, self._freed, key, size)
            self.now += size
            self.most = max(self.most, self.now)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) >= 3 else (kwargs[name] for name in ("query", "key", "value"))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def peak_bytes(work: Callable[[], Any], known: Iterable[Tensor] = (), device: str = "meta") -> int:
    """The most memory that tensors take at a time while some work is done; ``known`` are not counted."""
    with torch.no_grad(), _FusedAttention(), _Peak(device, known) as peak:
        work()
    return peak.most


def sampling_bytes(stage: Stage, images: int, tokens: int) -> int:
    """The same for drawing some images at a time with a stage on the meta device, in its dtype and at its defaults.
    tokens: of the text.
    """
    config = stage.config
    text = None
    if stage.denoiser.network.text_width is not None:
        mask = torch.ones(images, tokens, dtype=torch.bool, device="meta")
        width = stage.denoiser.network.text_width
        text = TextEmbedding(torch.empty(images, tokens, width, device="meta"), mask, "kept")
    low = config.low_resolution
    low_res = None if low is None else torch.empty(images, 3, *low, device="meta")

    def work() -> None:
        next(stage.sample(Draws(range(images), 0), config.resolution, text=text, null=text, low_res=low_res))

    return peak_bytes(work, stage.parameters())
