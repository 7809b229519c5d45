"""Several processes as one: who there is, what they agree on, and how a model is spread over them.

Every process trains on its rows of a batch. "ddp" keeps whole weights everywhere and averages the gradients; "fsdp"
(FSDP2) keeps a shard of every weight, gradient and optimizer state in each, for models that do not fit into one.
Processes are started by `torchrun` or `accelerate launch`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cascade.networks.attention import Attention
from cascade.networks.base import DiffusionNetwork
from cascade.networks.blocks import Modulated
from cascade.networks.efficient_unet import ConvBlock

Parallel = Literal["ddp", "fsdp"]

# What is called before the network's forward, not in its block's: these stay with the outermost shard.
PREPARED = ("modulation", "text_norm", "text_key_value")


@dataclass(frozen=True)
class World:
    """This process is number ``rank`` of ``size``. Number 0, the main one, writes what is written once."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join(device: str | None = None) -> tuple[World, torch.device]:
        """What the launcher says, connected, and this process's device: None is its GPU, or the CPU if there is none.

        Raises ValueError for a device that is not there.
        """
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, and torch {torch.__version__} finds no GPU; leave it out")
        from accelerate import PartialState

        # Without an accelerator, processes find each other only if the CPU is asked for.
        cpu = device == "cpu" or not torch.accelerator.is_available()
        state = PartialState(cpu=cpu, timeout=timedelta(hours=1))
        chosen = torch.device(str(state.device) if device in (None, "cuda") else device)
        if chosen.type == "cpu":
            chosen = torch.device("cpu")  # not cpu:0
        return World(state.process_index, state.num_processes), chosen

    @property
    def main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()  # torch's barrier, told the device as NCCL wants it

    def leave(self) -> None:
        """End the connection once all have come here: a process that exits with it open may be aborted by its threads
        (pytorch/pytorch#190489).
        """
        if self.size > 1:
            from accelerate import PartialState

            self.barrier()
            PartialState().destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def rows(self, count: int, parts: int) -> list[range]:
        """This process's share of ``count`` rows, in ``parts`` consecutive ones. Raises ValueError for a remainder."""
        own, rest = divmod(count, self.size * parts)
        if rest or not own:
            raise ValueError(
                f"a batch of {count} does not divide into {self.size} process(es) x {parts} accumulated part(s): "
                "change diffusion.batch_size or loop.accumulation"
            )
        first = self.rank * own * parts
        return [range(first + i * own, first + (i + 1) * own) for i in range(parts)]


class Inside(nn.Module):
    """Runs a function inside its own forward, which is where DDP and FSDP have their hooks.

    A loss is several calls of a model (what does not change over noise levels is computed first), and so is sampling.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def spread(model: nn.Module, world: World, parallel: Parallel, *, bf16: bool) -> nn.Module:
    """An `Inside` of the model, whose gradients are those of all processes. "fsdp" shards the model in place."""
    inside = Inside(model)
    if world.size == 1:
        return inside
    device = next(model.parameters()).device
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(
            inside,
            device_ids=None if device.type == "cpu" else [device],
            gradient_as_bucket_view=True,
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # An attention layer's last product is a view; nothing is changed in place after it, of which torch warns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    mesh = init_device_mesh(device.type, (world.size,))
    for layers in shard_groups(model):
        fully_shard(layers, mesh=mesh, mp_policy=policy)
    fully_shard(inside, mesh=mesh, mp_policy=policy)
    return inside


def shard_groups(model: nn.Module) -> list[list[nn.Module]]:
    """Layers that are gathered and given back together: those of a block, but for what runs before it."""
    groups = []
    for block in model.modules():
        if isinstance(block, Modulated | Attention | ConvBlock):
            layers = [
                layer
                for name, layer in block.named_children()
                if name not in PREPARED and not list(layer.children()) and list(layer.parameters())
            ]
            if layers:
                groups.append(layers)
    return groups


def synced(wrapped: nn.Module, last: bool) -> AbstractContextManager:
    """Where a backward pass runs: only that of the ``last`` accumulated part exchanges gradients."""
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else wrapped.no_sync()
    if hasattr(wrapped, "set_requires_gradient_sync"):
        wrapped.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue] (FSDPModule's)
    return nullcontext()


def put_back(wrapped: nn.Module) -> None:
    """Give up the weights that a forward pass without a backward pass has gathered."""
    if hasattr(wrapped, "reshard"):
        wrapped.reshard()  # pyright: ignore[reportCallIssue] (FSDPModule's)


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the inputs of a network's blocks for the backward pass, and compute what is inside once more there."""
    blocks = [block for block in model.modules() if isinstance(block, Modulated | Attention)]
    if not blocks:
        raise ValueError(f"activation_checkpointing: {type(model).__name__} has no blocks that it is known for")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_networks(model: nn.Module) -> None:
    """torch.compile, in place, of the networks inside a model."""
    networks = [module for module in model.modules() if isinstance(module, DiffusionNetwork)]
    if not networks:
        raise ValueError(f"compile: there is no diffusion network in {type(model).__name__}")
    for network in networks:
        network.compile()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue] (DTensor's)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes have to ask together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """``values`` (whole, the same in every process) spread as ``tensor`` is."""
    if not is_sharded(tensor):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)  # pyright: ignore


def is_sharded(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
