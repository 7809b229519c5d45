"""The Inception v3 of the FID, whose published weights are pt_inception-2015-12-05-6726825d.pth.

It is the network that Heusel et al. (2017) measured with, converted from TensorFlow by pytorch-fid, and differs from
torchvision's in its pooling: averages do not count the padding, and the last block takes the maximum instead. Its
weights are others, too. Names of modules are those of the file.

B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weights import WeightsError, check_tensors, read_legacy

SIDE = 299  # px
DIMENSIONS = 2048
CLASSIFIER = {"fc.weight": (1008, DIMENSIONS), "fc.bias": (1008,)}  # in the file, of no use here

Shape = tuple[int, ...]  # of a convolution: channels out, rows, columns, and stride where it is not 1
FORK: Shape = ()


class Convolution(nn.Module):
    """Convolution, normalization, ReLU. One of stride 1 keeps the size, unless pad is False; others do not pad."""

    def __init__(self, channels: int, shape: Shape, pad: bool = True) -> None:
        super().__init__()
        out, rows, columns, stride = (*shape, 1)[:4]
        padding = (rows // 2, columns // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(channels, out, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains of convolutions side by side, and pooling as one more; their channels are joined.

    chains: by name; FORK stands for 1 x 3 and 3 x 1 convolutions side by side. pool: "average" or "maximum" over 3 x 3,
    then a convolution to `pooled` channels; "stride", the maximum at every second pixel and no more.
    """

    def __init__(self, channels: int, chains: Mapping[str, Sequence[Shape]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.out = pooled or channels
        self.chains: list[list[list[str]]] = []  # of each chain, the names of its convolutions, step by step
        for chain, shapes in chains.items():
            steps, width = [], channels
            for i, shape in enumerate(shapes, start=1):
                name = chain if len(shapes) == 1 else f"{chain}_{i}"
                step = {f"{name}a": (384, 1, 3), f"{name}b": (384, 3, 1)} if shape == FORK else {name: shape}
                for one, own in step.items():
                    self.add_module(one, Convolution(width, own))
                width = sum(own[0] for own in step.values())
                steps.append(list(step))
            self.chains.append(steps)
            self.out += width
        if pooled:
            self.branch_pool = Convolution(channels, (pooled, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for steps in self.chains:
            h = x
            for names in steps:
                h = torch.cat([self.get_submodule(name)(h) for name in names], dim=1)
            parts.append(h)
        return torch.cat([*parts, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "stride":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        return self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


def _block_5(channels: int, pooled: int) -> Block:
    chains = {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
    }
    return Block(channels, chains, "average", pooled)


def _block_6(channels: int, c: int) -> Block:
    chains = {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(c, 1, 1), (c, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)],
    }
    return Block(channels, chains, "average", 192)


def _block_7(channels: int, pool: str) -> Block:
    chains = {
        "branch1x1": [(320, 1, 1)],
        "branch3x3": [(384, 1, 1), FORK],
        "branch3x3dbl": [(448, 1, 1), (384, 3, 3), FORK],
    }
    return Block(channels, chains, pool, 192)


class Inception(nn.Sequential):
    """B 3 299 299, in TensorFlow's range (x - 128) / 128 of bytes x -> B 2048."""

    def __init__(self) -> None:
        first_half = {"branch3x3": [(384, 3, 3, 2)], "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3, 2)]}
        second_half = {
            "branch3x3": [(192, 1, 1), (320, 3, 3, 2)],
            "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)],
        }
        super().__init__(
            OrderedDict(
                Conv2d_1a_3x3=Convolution(3, (32, 3, 3, 2)),
                Conv2d_2a_3x3=Convolution(32, (32, 3, 3), pad=False),
                Conv2d_2b_3x3=Convolution(32, (64, 3, 3)),
                pool_1=nn.MaxPool2d(3, stride=2),
                Conv2d_3b_1x1=Convolution(64, (80, 1, 1)),
                Conv2d_4a_3x3=Convolution(80, (192, 3, 3), pad=False),
                pool_2=nn.MaxPool2d(3, stride=2),
                Mixed_5b=_block_5(192, 32),
                Mixed_5c=_block_5(256, 64),
                Mixed_5d=_block_5(288, 64),
                Mixed_6a=Block(288, first_half, "stride"),
                Mixed_6b=_block_6(768, 128),
                Mixed_6c=_block_6(768, 160),
                Mixed_6d=_block_6(768, 160),
                Mixed_6e=_block_6(768, 192),
                Mixed_7a=Block(768, second_half, "stride"),
                Mixed_7b=_block_7(1280, "average"),
                Mixed_7c=_block_7(2048, "maximum"),
                pool_3=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )

    @staticmethod
    def from_file(path: str | Path) -> Inception:
        """The network with the weights of a .pth (read without running code) or .safetensors file.

        Raises WeightsError naming what in the file is not of this network; torchvision's weights are refused.
        """
        tensors = _read(Path(path))
        tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
        network = Inception()
        expected = {name: value.shape for name, value in network.state_dict().items() if value.ndim}
        check_tensors(CLASSIFIER | expected, tensors, f"{path}, which should be pt_inception-2015-12-05,")
        network.load_state_dict({name: tensors[name] for name in expected}, strict=False)
        return network.eval().requires_grad_(False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_legacy(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is missing, truncated or damaged ({error}); copy or download it again") from error
