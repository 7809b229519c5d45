"""The toybox detector: what stands where in a picture, so that a prompt's verdict (judge.py) needs no person.

One network of two parts. What-and-where reads the picture at 128 px: a map of 16 x 16 cells says where the hearts of
things are (data.py; Zhou et al. 2019, "Objects as Points") and for each its noun, colour, place and bulk, and how
well-formed it is: a lump is no toy, however much like one toy rather than the others it may look.
Material reads 64 x 64 pixels about each heart at the picture's full 256 px, the only scale at which textures show.

B images, T things found in all of them, C channels, H W cells or pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config import ConfigError, decode, encode
from cascade.data.toybox.description import COLOURS
from cascade.data.toybox.materials import MATERIALS
from cascade.data.toybox.nouns import NOUNS
from pipelines.evaluation.judge import UNCLEAR, Found
from weights import EMBEDDED_DETECTOR, WeightsError, atomic_write, check_tensors

SIZE = 256  # px, the side of the pictures that are judged
SEEN = 128  # px, the side at which what-and-where sees them
CROP = 64  # px of SIZE, the side of what material sees
CELL = 8  # px of SEEN
GRID = SEEN // CELL
AT_ONCE = 32  # pictures
FOLDER = EMBEDDED_DETECTOR
CONFIG, TENSORS = "config.json", "model.safetensors"
SAME = 1.0  # cells; nearer hearts are one,
CLOSEST = 0.5  # unless noun and colour both say that they are two, which may be as near as this
GROUP = 16  # channels that are normalized together

# What each cell says, in the order of its channels. heart: whether one is here; offset: from the cell's middle to the
# heart, in cells, x right and y down; place: of the foot, world units; form: how little of it is misshapen.
HEADS = {"heart": 1, "noun": len(NOUNS), "colour": len(COLOURS), "place": 3, "log_bulk": 1, "offset": 2, "form": 1}


@dataclass(frozen=True)
class DetectorConfig:
    """fine, coarse: (channels, residual blocks) of what-and-where at 4 and at 8 px of SEEN; material: the same at 4 and
    8 px of SIZE. threshold: the least score of what counts as found. clear: the least product of that score, of how
    well-formed a thing is and of how surely it is its noun; below it, the noun is UNCLEAR. The names are the meaning
    of the outputs."""

    fine: tuple[int, int] = (64, 2)
    coarse: tuple[int, int] = (112, 4)
    material_fine: tuple[int, int] = (48, 2)
    material_coarse: tuple[int, int] = (80, 1)
    threshold: float = 0.4
    clear: float = 0.35
    nouns: tuple[str, ...] = tuple(NOUNS)
    colours: tuple[str, ...] = tuple(COLOURS)
    materials: tuple[str, ...] = MATERIALS

    def __post_init__(self) -> None:
        for name in ("fine", "coarse", "material_fine", "material_coarse"):
            channels, blocks = getattr(self, name)
            if channels < GROUP or channels % GROUP or blocks < 0:
                raise ValueError(
                    f"{name} {channels, blocks}: expected a multiple of {GROUP} channels and 0 blocks or more"
                )
        for name in ("threshold", "clear"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected a score between 0 and 1")
        for name, world in (("nouns", tuple(NOUNS)), ("colours", tuple(COLOURS)), ("materials", MATERIALS)):
            if getattr(self, name) != world:
                raise ValueError(
                    f"{name} {getattr(self, name)}: the toybox now has {world}; train the detector anew "
                    "(python -m pipelines.evaluation.detector.training)"
                )


class Block(nn.Module):
    """Two 3 x 3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_first = nn.GroupNorm(channels // GROUP, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_second = nn.GroupNorm(channels // GROUP, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm_first(x)))
        return x + self.second(F.silu(self.norm_second(h)))


def trunk(channels_in: int, fine: tuple[int, int], coarse: tuple[int, int]) -> nn.Sequential:
    """B C 4h 4w -> B c h/2 w/2 with c = coarse[0]. Pixels are folded, as thin layers on many pixels are slow."""
    return nn.Sequential(
        nn.PixelUnshuffle(4),
        nn.Conv2d(16 * channels_in, fine[0], 3, padding=1),
        *(Block(fine[0]) for _ in range(fine[1])),
        nn.Conv2d(fine[0], coarse[0], 3, stride=2, padding=1),
        *(Block(coarse[0]) for _ in range(coarse[1])),
        nn.GroupNorm(coarse[0] // GROUP, coarse[0]),
        nn.SiLU(),
    )


class WhatAndWhere(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.trunk = trunk(5, config.fine, config.coarse)
        self.heads = nn.Conv2d(config.coarse[0], sum(HEADS.values()), 1)
        assert self.heads.bias is not None
        nn.init.constant_(self.heads.bias[:1], -4.0)  # hearts are rare: start from there

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """B 3 SEEN SEEN in [-1, 1] -> for each of HEADS, B GRID GRID C; hearts, nouns, colours and forms as logits."""
        out = self.heads(self.features(pictures)).float().permute(0, 2, 3, 1)
        return dict(zip(HEADS, out.split(list(HEADS.values()), dim=-1), strict=True))

    def features(self, pictures: Tensor) -> Tensor:
        """B 3 SEEN SEEN in [-1, 1] -> B C GRID GRID, from which the heads read."""
        axis = torch.linspace(-1, 1, SEEN, device=pictures.device, dtype=pictures.dtype)
        # The camera never moves, so where in the picture a thing is tells its place in the world.
        where = torch.stack(torch.meshgrid(axis, axis, indexing="xy")).expand(len(pictures), -1, -1, -1)
        return self.trunk(torch.cat([pictures, where], dim=1).contiguous(memory_format=torch.channels_last))


class Material(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        cells = CROP // 8
        self.trunk = trunk(3, config.material_fine, config.material_coarse)
        self.heads = nn.Conv2d(config.material_coarse[0], 1 + len(MATERIALS) + 1, 1)
        self.nearness = nn.Parameter(torch.zeros(cells, cells))  # neighbours of the thing are in the crop's corners

    def forward(self, crops: Tensor) -> Tensor:
        """T 3 CROP CROP in [-1, 1] -> T C logits, of MATERIALS and of none of them.

        They are a mean over cells, each weighed by how much it has to say.
        """
        # Textures are faint beside colours and shapes, and nothing is learned of them without this (measured).
        smooth = F.avg_pool2d(crops, 5, stride=1, padding=2, count_include_pad=False)
        details = 4.0 * (crops - smooth).contiguous(memory_format=torch.channels_last)
        out = self.heads(self.trunk(details)).float()
        weights = (out[:, 0] + self.nearness).flatten(1).softmax(dim=1)  # T HW
        return torch.einsum("tcp,tp->tc", out[:, 1:].flatten(2), weights)


@dataclass(frozen=True)
class Seen:
    """T things in some pictures.

    image T: the number of the picture; heart T 2: x and y in cells; score, clear T: the products that `threshold` and
    `clear` of DetectorConfig bound; at: what HEADS say of each, T C.
    """

    image: Tensor
    heart: Tensor
    score: Tensor
    clear: Tensor
    at: dict[str, Tensor]


class Detector(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.what_and_where = WhatAndWhere(config)
        self.material = Material(config)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What what-and-where knows of each image, as 4 x 4 parts of it: B D. Takes images as `find` does."""
        check_images(images)
        maps = self.what_and_where.features(F.avg_pool2d(to_size(images.float()), SIZE // SEEN))
        return F.adaptive_avg_pool2d(maps.float(), 4).flatten(1)

    @torch.no_grad()
    def find(self, images: Tensor) -> list[list[Found]]:
        """What is seen in each image, surest first.

        images: B 3 H H, float, RGB in [-1, 1]; sides other than 256 px are resized. Works on the weights' device.
        Raises ValueError for anything else.
        """
        check_images(images)
        device = self.material.nearness.device
        found = []
        for start in range(0, len(images), AT_ONCE):
            found += self._find(to_size(images[start : start + AT_ONCE].to(device, torch.float32)))
        return found

    def _find(self, images: Tensor) -> list[list[Found]]:
        seen = self.see(F.avg_pool2d(images, SIZE // SEEN))
        corner = (seen.heart * (SIZE / GRID) - CROP / 2).round().long().clamp(0, SIZE - CROP)
        crops = [
            images[i, :, y : y + CROP, x : x + CROP] for i, (x, y) in zip(seen.image, corner.tolist(), strict=True)
        ]
        materials = self.material(torch.stack(crops)).argmax(dim=1).tolist() if crops else []
        clear = (seen.clear >= self.config.clear).tolist()
        found: list[list[Found]] = [[] for _ in images]
        for i in seen.score.argsort(descending=True).tolist():
            x, y, z = seen.at["place"][i].tolist()
            found[int(seen.image[i])].append(
                Found(
                    noun=self.config.nouns[int(seen.at["noun"][i].argmax())] if clear[i] else UNCLEAR,
                    colour=self.config.colours[int(seen.at["colour"][i].argmax())],
                    material=(*self.config.materials, UNCLEAR)[materials[i]],
                    position=(x, y, z),
                    bulk=math.exp(float(seen.at["log_bulk"][i])),
                    score=float(seen.score[i]),
                )
            )
        return found

    @torch.no_grad()
    def see(self, pictures: Tensor) -> Seen:
        """What stands where in pictures, B 3 SEEN SEEN in [-1, 1]."""
        maps = self.what_and_where(pictures)
        mirrored = self.what_and_where(pictures.flip(-1))["form"].flip(2)
        maps["form"] = (maps["form"] + mirrored) / 2  # forms are the hardest to tell, and a mirror does not change them
        score, peak = hearts(maps)
        image, row, column = (peak & (score >= self.config.threshold)).nonzero(as_tuple=True)
        at = {name: value[image, row, column] for name, value in maps.items()}
        heart = torch.stack([column, row], dim=1) + 0.5 + at["offset"]
        score = score[image, row, column]
        clear = score * at["form"][:, 0].sigmoid() * at["noun"].softmax(dim=1).amax(dim=1)
        return Seen(image, heart, score, clear, at)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into the folder."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().half().cpu().contiguous() for name, value in self.state_dict().items()}
        atomic_write(folder / TENSORS, save(tensors, metadata={"format": "pt"}))
        atomic_write(folder / CONFIG, json.dumps(encode(self.config), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path = FOLDER) -> Detector:
        """The detector in a folder, in float32 on the CPU. Raises WeightsError naming the file and what is wrong."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for path in (folder / CONFIG, folder / TENSORS):
            if not path.is_file():
                raise WeightsError(f"no {path}; train one with python -m pipelines.evaluation.detector.training")
        try:
            config = decode(DetectorConfig, json.loads((folder / CONFIG).read_text(encoding="utf-8")), CONFIG)
        except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
            raise WeightsError(f"{folder / CONFIG} is not a detector's configuration: {error}") from error
        try:
            tensors = load_file(folder / TENSORS)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{folder / TENSORS} is truncated or damaged ({error}); restore it") from error
        detector = cls(config)
        expected = {name: value.shape for name, value in detector.state_dict().items()}
        check_tensors(expected, tensors, folder / TENSORS)
        if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
            raise WeightsError(f"{folder / TENSORS} holds values that are not finite in {broken[:10]}; restore it")
        detector.load_state_dict(tensors)
        return detector.eval().requires_grad_(False)


def hearts(maps: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores in [0, 1], and whether a cell is the surest of those that point to the same heart; B H W each.

    Cells that lie side by side may well know of different hearts, such as those of two flat things on each other, or
    of a chair and what stands on its seat.
    """
    score = maps["heart"][..., 0].sigmoid().flatten(1)  # B HW
    axis = torch.arange(GRID, device=score.device) + 0.5
    middle = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # H W 2
    at = (middle + maps["offset"]).flatten(1, 2)  # B HW 2
    apart = torch.cdist(at, at)
    noun, colour = (maps[name].argmax(dim=-1).flatten(1) for name in ("noun", "colour"))
    alike = (noun[:, :, None] == noun[:, None, :]) | (colour[:, :, None] == colour[:, None, :])
    same = (apart < CLOSEST) | (alike & (apart < SAME))
    outdone = (same & (score[:, None, :] > score[:, :, None])).any(dim=2)
    return score.unflatten(1, (GRID, GRID)), ~outdone.unflatten(1, (GRID, GRID))


def check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.shape[3] < 16:
        raise ValueError(f"images of shape {tuple(images.shape)}: expected B 3 H H with H >= 16; crop them to squares")
    if not images.is_floating_point():
        raise ValueError(f"images of {images.dtype}: expected floats in [-1, 1]; divide bytes by 127.5 and subtract 1")
    if images.numel():
        low, high = images.min().item(), images.max().item()
        if not -1.01 <= low <= high <= 1.01:
            raise ValueError(f"images with values from {low:g} to {high:g}: expected [-1, 1]; rescale or clamp them")


def to_size(images: Tensor) -> Tensor:
    """B 3 H H -> B 3 SIZE SIZE: larger ones by averaging over areas, smaller ones bicubically."""
    if images.shape[-1] > SIZE:
        return F.interpolate(images, SIZE, mode="area")
    if images.shape[-1] < SIZE:
        return F.interpolate(images, SIZE, mode="bicubic", align_corners=False).clamp(-1, 1)
    return images
