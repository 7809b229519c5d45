"""Where a pipeline's weights are: on a device, or in the main memory, from where they come while they are at work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from cascade.chain import Cascade
from conditioning.text import TextEncoder
from pipelines.safety import SafetyChecker
from pipelines.upscaler import Upscaler

if TYPE_CHECKING:
    from pipelines.offload import Offload


class Placement:
    """The part of a `Pipeline` that moves what it is made of."""

    cascade: Cascade
    text_encoder: TextEncoder | None
    safety_checker: SafetyChecker | None
    upscaler: Upscaler | None
    _offload: Offload | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.cascade.stages[0].device if self._offload is None else self._offload.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.cascade.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move everything, in place. The dtype is what the networks compute in; images stay float32. Offloading ends
        where a device is given.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        offload, self._offload = self._offload, None
        if offload is not None:
            offload.remove()
        self.cascade.to(device=device, dtype=dtype)
        if self.text_encoder is not None:
            self.text_encoder.to(device=device, dtype=dtype)
        if self.safety_checker is not None:
            self.safety_checker.model.to(device=device, dtype=dtype)
        if self.upscaler is not None:
            self.upscaler.to(device, dtype)
        if offload is not None and device is None:
            self._start_offloading(offload.device, offload.sequential)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Keep the weights in the main memory. The text encoder, each stage, the upscaler and the safety checker come
        to the device while they are at work, one at a time. device: the accelerator that there is.
        """
        self._start_offloading(device, sequential=False)

    def enable_sequential_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """The same layer by layer: the least memory, and slow, since every step moves all weights of its stage."""
        self._start_offloading(device, sequential=True)

    def _start_offloading(self, device: torch.device | str | None, sequential: bool) -> None:
        from pipelines.offload import Offload

        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = torch.device(device or "cpu")
        self.to("cpu")
        modules: list[nn.Module] = [*self.cascade.stages]
        if self.text_encoder is not None:
            modules.append(self.text_encoder.model)
        if self.safety_checker is not None:
            modules.append(self.safety_checker.model)
        if self.upscaler is not None:
            modules += self.upscaler.modules
        self._offload = Offload(modules, device, sequential)

    @property
    def brings_stages(self) -> bool:
        """Whether a stage comes to the device for its work and goes again, as a whole."""
        return self._offload is not None and not self._offload.sequential

    def at_work(self, *modules: nn.Module, anchor: nn.Module | None = None) -> AbstractContextManager[None]:
        """While offloading, keep modules on the device; see `Offload.at_work`."""
        return nullcontext() if self._offload is None else self._offload.at_work(*modules, anchor=anchor)

    def encoder_at_work(self) -> AbstractContextManager[None]:
        return nullcontext() if self.text_encoder is None else self.at_work(self.text_encoder.model)

    def checker_at_work(self) -> AbstractContextManager[None]:
        return nullcontext() if self.safety_checker is None else self.at_work(self.safety_checker.model)
