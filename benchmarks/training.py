"""The trainer against imagen-pytorch's, two processes against one, and what share of a GPU it uses.

    python benchmarks/training.py peer [--peer-folder DIR] [--networks 1 4] [--precisions float32 bfloat16] [--batch 8]
    python benchmarks/training.py processes [--cores 0 1]
    python benchmarks/training.py utilization [--device cuda] [--compile]

peer: text to 64 px; forward, backward, optimizer and EMA, by each trainer's own loop in a process of its own with one
thread. Both networks have the layout of Imagen's base (imagen-pytorch's BaseUnet64) scaled down: four levels of 1 to 4
times the width, as many residual blocks on each, attention at the same sizes, 32 tokens of text 768 wide. They are not
the same: imagen-pytorch attends once a level, with feed-forward layers, Cascade in every block. Widths are chosen for
forward passes of about as many operations, as torch counts them, and the rest is divided out: "per operation" is how
many operations Cascade does in the time the other takes for one. The trainers take steps in turn. Beside the clock
stands the processor's own time, which a busy machine changes less. imagen-pytorch runs as it comes, and again with
fused attention and channels_last. It needs an environment of its own, with torchvision, which is made if it is not
there (1.5 GB).

processes: batches of one size, in one process and divided between two (DDP over gloo), a thread and a core for each.

utilization: a 64 px base of 648 million parameters in bf16: the share of the GPU's peak, and where the time goes.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from environment import environment, other_environment
from turns import Worker, ratio, spread, take_turns

Precision = Literal["float32", "bfloat16"]
TOKENS, TEXT_WIDTH = 32, 768
MULTIPLIERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Pair:
    """Two networks with ``blocks`` a level and attention on some of the levels, each with a width of its own.

    heads: imagen-pytorch's, of 64 channels whatever the width; it takes no fewer than 2.
    """

    blocks: int
    attention_levels: tuple[int, ...]
    width: int
    peer_width: int
    heads: int

    @property
    def ours(self) -> dict[str, Any]:
        """Arguments of a UNetConfig."""
        return {
            "width": self.width,
            "multipliers": MULTIPLIERS,
            "blocks": (self.blocks,) * len(MULTIPLIERS),
            "attention_levels": self.attention_levels,
            "embedding_width": 4 * self.width,
            "text_width": TEXT_WIDTH,
        }

    @property
    def peer(self) -> dict[str, Any]:
        """Arguments of imagen-pytorch's Unet."""
        attention = [level in self.attention_levels for level in range(len(MULTIPLIERS))]
        return {
            "dim": self.peer_width,
            "dim_mults": MULTIPLIERS,
            "num_resnet_blocks": self.blocks,
            "layer_attns": attention,
            "layer_cross_attns": attention,
            "attn_heads": self.heads,
            "text_embed_dim": TEXT_WIDTH,
        }


# By GFLOPs of a forward pass over an image, roughly.
NETWORKS = {
    1: Pair(blocks=1, attention_levels=(2, 3), width=16, peer_width=16, heads=2),
    4: Pair(blocks=1, attention_levels=(1, 2, 3), width=32, peer_width=32, heads=2),
    20: Pair(blocks=2, attention_levels=(1, 2, 3), width=64, peer_width=64, heads=4),
}


def cascade_steps(
    network: Mapping[str, Any],
    batch: int,
    precision: str,
    cores: tuple[int | None, ...] = (None,),
) -> Worker:
    """A process of Cascade's, or several, each on a core."""
    settings = {"network": network, "batch": batch, "tokens": TOKENS, "precision": precision, "cores": cores}
    if len(cores) == 1:
        return Worker("cascade_steps", settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(len(cores))}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(cores))]
    return Worker("cascade_steps", settings, environments=ranks)


def peer(
    peer_folder: Path = Path("runs/imagen-pytorch"),
    networks: tuple[int, ...] = (1, 4),
    precisions: tuple[Precision, ...] = ("float32", "bfloat16"),
    batch: int = 8,
    steps: int = 7,
    warmup: int = 2,
) -> None:
    """Against imagen-pytorch, on the CPU.

    Args:
        peer_folder: Its environment; made if it is not there.
        networks: Which, by GFLOPs: of 1, 4 and 20.
        precisions: float32, or autocast to bfloat16.
        batch: Images a step.
        steps: Of each trainer, of which medians are shown.
        warmup: Steps before them.
    """
    unknown = set(networks) - set(NETWORKS)
    if unknown:
        sys.exit(f"no networks of {unknown} GFLOPs; there are {', '.join(map(str, NETWORKS))}")
    python = other_environment(peer_folder, "imagen-pytorch==2.1.0")
    print(f"{environment()}\n\nBatches of {batch}, {steps} steps of each in turn; median (least to most).\n")
    print("| network | trainer | parameters | GFLOPs/image | seconds/step | memory | per operation | by CPU time |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for size in networks:
        for precision in precisions:
            ours = cascade_steps(NETWORKS[size].ours, batch, precision)
            workers = {"Cascade": ours}
            for name, patched in (("imagen-pytorch", False), ("the same, patched", True)):
                settings = {"batch": batch, "tokens": TOKENS, "precision": precision, "patched": patched}
                settings["unet"] = NETWORKS[size].peer
                workers[name] = Worker("imagen_pytorch_steps", settings, python)
            take_turns(workers.values(), steps, warmup)
            for name, worker in workers.items():
                gain = ours.said["flops"] / worker.said["flops"]
                ratios = "| | |"
                if worker is not ours:
                    wall, cpu = gain * ratio(worker.wall, ours.wall), gain * ratio(worker.cpu, ours.cpu)
                    ratios = f"| {wall:.2f} x | {cpu:.2f} x |"
                print(
                    f"| {size} GFLOPs, {precision} | {name} | {worker.said['parameters'] / 1e6:.1f} M | "
                    f"{worker.said['flops'] / 1e9:.2f} | {spread(worker.wall)} | {worker.memory / 1e9:.2f} GB {ratios}",
                    flush=True,
                )


def processes(
    cores: tuple[int, int] = (0, 1),
    network: int = 4,
    batch: int = 16,
    steps: int = 15,
    precision: Precision = "float32",
) -> None:
    """Two processes against one, which has the first of the cores.

    Args:
        cores: Where the two run.
        network: Which, by GFLOPs: 1, 4 or 20.
        batch: Images a step, of all processes together.
        steps: Of each, of which medians are shown.
        precision: float32, or autocast to bfloat16.
    """
    one = cascade_steps(NETWORKS[network].ours, batch, precision, cores[:1])
    two = cascade_steps(NETWORKS[network].ours, batch, precision, cores)
    take_turns([one, two], steps, warmup=2)
    print(f"{environment()}\n\n{network} GFLOPs/image, {precision}, batches of {batch}; median (least to most).\n")
    print("| processes | seconds/step | seconds of CPU/step | images/s |\n|---:|---:|---:|---:|")
    for count, worker in ((1, one), (2, two)):
        rates = spread([batch / seconds for seconds in worker.wall])
        print(f"| {count} | {spread(worker.wall)} | {spread(worker.cpu)} | {rates} |")
    print(f"\nTwo make {ratio(one.wall, two.wall):.2f} times the images of one.")


def utilization(
    device: str = "cuda",
    width: int = 256,
    batch: int = 64,
    steps: int = 20,
    workers: int = 4,
    compile: bool = False,
) -> None:
    """The share of a GPU's peak in training, and a profile.

    Args:
        device: cuda; cpu goes the same way, without a share, for networks of little width.
        width: Of the network, Imagen's 64 px base; 256 gives 648 million parameters.
        batch: Images a step.
        steps: How many are timed.
        workers: Processes that make batches.
        compile: Compile the network.
    """
    from workers.utilization import measure

    print(f"{environment()}\n")
    measure(device, width, batch, steps, workers, compile)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"peer": peer, "processes": processes, "utilization": utilization})
