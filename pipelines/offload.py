"""Offloading: weights stay in the main memory, and on the device is only what is at work.

Nothing is copied back, since the weights have not changed: the copy on the device is dropped. Those stored in the type
they are computed in stay pages of the file they were read from, which the system loads when they are first needed and
may drop again, so a cascade may exceed the main memory, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import find_device, send_to_device
from torch import Tensor, nn


class Offload:
    """Modules whose weights come to a device for as long as they are at work.

    A module is at work in its `forward`, and within `at_work`. sequential: its layers come one by one instead, each for
    its own `forward`, so that it takes the memory of the largest one.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, sequential: bool) -> None:
        self.modules = WeakSet(modules)  # one that the pipeline no longer has is freed
        self.device, self.sequential = device, sequential
        self._host: dict[int, tuple[Tensor, Tensor]] = {}  # of what is on the device, by id: its data on the host
        for module in modules:
            for part in module.modules() if sequential else ():
                if part is not module and any(True for _ in _tensors(part, recurse=False)):
                    add_hook_to_module(part, _Visit(self, recurse=False))
            add_hook_to_module(module, _Visit(self, recurse=not sequential))

    def remove(self) -> None:
        for module in self.modules:
            remove_hook_from_module(module, recurse=True)

    @contextmanager
    def at_work(self, *modules: nn.Module, anchor: nn.Module | None = None) -> Iterator[None]:
        """Keep modules on the device; under `sequential` only the anchor, a layer by whose device they tell where to
        compute.
        """
        kept = modules if not self.sequential else () if anchor is None else (anchor,)
        came = self.bring(tensor for module in kept for tensor in _tensors(module))
        try:
            yield
        finally:
            self.release(came)

    def bring(self, tensors: Iterable[Tensor]) -> list[int]:
        """Put on the device what is not there; what `release` takes."""
        came = []
        for tensor in tensors:
            if id(tensor) not in self._host:
                self._host[id(tensor)] = tensor, tensor.data
                tensor.data = tensor.data.to(self.device)
                came.append(id(tensor))
        return came

    def release(self, came: Iterable[int]) -> None:
        for key in came:
            tensor, data = self._host.pop(key)
            tensor.data = data

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether it is on the device."""
        return id(tensor) in self._host


class _Visit(ModelHook):
    """A module's weights, or its own without those of its parts, are on the device during its forward; its outputs go
    where its inputs came from.
    """

    def __init__(self, offload: Offload, recurse: bool) -> None:
        self.offload, self.recurse = offload, recurse
        self.execution_device = offload.device  # where diffusers' pipelines look
        self.came: list[int] = []
        self.home: torch.device | None = None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.home = find_device([args, kwargs])
        self.came += self.offload.bring(_tensors(module, self.recurse))  # after what a forward that failed has left
        return send_to_device(args, self.offload.device), send_to_device(kwargs, self.offload.device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.offload.release(self.came)
        self.came = []
        return output if self.home is None else send_to_device(output, self.home)


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)
