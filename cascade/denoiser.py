"""The denoiser: network + schedule + parameterization -> the clean image behind a noisy one.

    Denoised(x0, variance_fraction) = denoise(z, logsnr)

is the one contract that guidance, thresholding and samplers are written against. This is also the float32 boundary:
whatever dtype the network computes in, z, x0 and the scalars around them are float32.

Shapes: B images, R = B or 2B rows (guidance runs both halves in one pass), C channels, H W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cascade.networks.attention import TextFeatures
from cascade.networks.base import DiffusionNetwork
from cascade.networks.blocks import Modulated
from cascade.parameterization import Prediction, to_x0
from cascade.schedules import Cosine, Level, Schedule, alpha_sigma, network_input
from conditioning.text import TextEmbedding

# A table over all steps may take this many numbers; beyond it, it is built in chunks of steps.
TABLE_NUMBERS = 50_000_000


class Denoised(NamedTuple):
    """x0: the clean image, float32, in [-1, 1] up to the model's error. variance_fraction: for a learned variance,
    where in log space it lies between the posterior's (0) and beta's (1) (Nichol & Dhariwal 2021, eq. 15), which no
    step size changes.
    """

    x0: Tensor
    variance_fraction: Tensor | None = None


Denoise = Callable[[Tensor, float], Denoised]


@dataclass(frozen=True)
class Condition:
    """What steers a denoiser, one row per image; None where the stage takes nothing of the kind.

    low_res: B 3 H W at the stage's own resolution, already augmented. aug_logsnr: (B,), the level it was augmented to.
    label: (B,) long.
    """

    text: TextEmbedding | None = None
    low_res: Tensor | None = None
    aug_logsnr: Tensor | None = None
    label: Tensor | None = None


class ModulationTable:
    """Every block's modulation at every level of a grid, computed for many steps in one product, a chunk at a time.

    A level off the grid is computed on demand. Rows are those of ``condition`` (R E).
    """

    def __init__(self, denoiser: "Denoiser", condition: Tensor, grid: Sequence[float]) -> None:
        self.denoiser, self.condition = denoiser, condition
        self.levels = [level for level in grid if level != math.inf]
        self._chunk: dict[float, list[Tensor]] = {}

    def __call__(self, logsnr: float) -> list[Tensor]:
        """R k per block."""
        if logsnr not in self._chunk:
            start = self.levels.index(logsnr) if logsnr in self.levels else None
            wanted = [logsnr] if start is None else self.levels[start : start + self._steps_at_once()]
            inputs = [self.denoiser.noise_input(level) for level in wanted]
            stacked = self.denoiser.network.modulations(
                torch.tensor(inputs, device=self.condition.device), self.condition
            )
            self._chunk = {level: [block[i] for block in stacked] for i, level in enumerate(wanted)}
        return self._chunk[logsnr]

    def _steps_at_once(self) -> int:
        return max(1, TABLE_NUMBERS // (self.denoiser.modulation_width * len(self.condition)))


@dataclass(frozen=True)
class Prepared:
    """What does not change along a sampling loop, computed once: text keys and values, the constant part of the
    embedding, the low-resolution image, and the table of modulations.

    It has one row per image, or two (both halves of guidance, `cat`); the low-resolution image, the same in both
    halves, is stored once. Slices along the rows are views.
    """

    text: TextFeatures | None
    condition: Tensor
    low_res: Tensor | None
    table: ModulationTable
    rows: slice = field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        return len(self.condition)

    def __getitem__(self, rows: slice) -> "Prepared":
        """The given rows, which must not straddle the two halves. The table stays that of the whole."""
        start, stop, step = rows.indices(len(self))
        if step != 1 or stop <= start:
            raise ValueError(f"a slice of {len(self)} prepared rows must be non-empty with step 1, got {rows}")
        offset = self.rows.start or 0
        low_res = self.low_res
        if low_res is not None:
            images = len(low_res)
            if start // images != (stop - 1) // images:
                raise ValueError(f"rows {start}:{stop} straddle the guidance halves of {images} images")
            low_res = low_res[start % images : (stop - 1) % images + 1]
        return replace(
            self,
            text=None if self.text is None else self.text[start:stop],
            condition=self.condition[start:stop],
            low_res=low_res,
            rows=slice(offset + start, offset + stop),
        )

    def modulations(self, logsnr: float | Tensor) -> list[Tensor]:
        """R k per block, at one level or at a level per row."""
        if isinstance(logsnr, Tensor):
            denoiser = self.table.denoiser
            return denoiser.network.paired_modulations(denoiser.noise_input(logsnr), self.condition)
        return [block[self.rows] for block in self.table(logsnr)]


class Denoiser(nn.Module):
    """A network told the noise level in its own units, read as x0.

    A network with twice the image's channels at its output also predicts the variance (``learned_variance``).
    ``aug_schedule`` is that of the low-resolution image's augmentation.
    """

    def __init__(
        self,
        network: DiffusionNetwork,
        schedule: Schedule,
        prediction: Prediction = "v",
        *,
        learned_variance: bool = False,
        aug_schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        if prediction not in ("eps", "x", "v"):
            raise ValueError(f'prediction must be "eps", "x" or "v", got {prediction!r}')
        self.network, self.schedule, self.learned_variance = network, schedule, learned_variance
        self.aug_schedule = aug_schedule or Cosine()
        self.prediction: Prediction = prediction
        self.modulation_width = sum(
            module.modulation.out_features for module in network.modules() if isinstance(module, Modulated)
        )

    def noise_input(self, logsnr: Level) -> Level:
        """What the network is told."""
        return network_input(self.schedule, logsnr)

    def lay_out(self) -> None:
        """Order the weights in memory, and with them the maps, as sampling is fastest; their values stay.

        A CPU's bfloat16 convolutions want the channels of a pixel side by side, and copy whatever comes otherwise. In
        float32 that gains less, and costs two digits: torch's group norm then adds a large map's pixels up one by one.
        """
        weight = next(self.network.parameters())
        side_by_side = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        layout = torch.channels_last if side_by_side else torch.contiguous_format
        self.network.to(memory_format=layout)  # pyright: ignore[reportCallIssue] (torch's overloads leave it out)

    def prepare(self, condition: Condition, grid: Sequence[float] = (), *, batch: int | None = None) -> Prepared:
        """Compute what the levels of ``grid`` share; ``batch`` is needed where nothing in the condition tells it."""
        text, low_res = condition.text, condition.low_res
        given = (text, low_res, condition.aug_logsnr, condition.label)
        sizes = {len(part) for part in given if part is not None} | ({batch} if batch is not None else set())
        if len(sizes) != 1:
            raise ValueError(f"cannot tell the batch size from a condition with rows {sorted(sizes)}")
        network = self.network
        aug = condition.aug_logsnr
        embedded = network.embed_condition(
            sizes.pop(),
            None if text is None else text.tokens,
            None if text is None else text.visible,
            None if aug is None else network_input(self.aug_schedule, aug),
            condition.label,
        )
        features = None if text is None else network.text_features(text.tokens, text.visible)
        return Prepared(features, embedded, low_res, ModulationTable(self, embedded, grid))

    def pair(self, conditional: Condition, null: Condition, grid: Sequence[float]) -> Prepared:
        """Both halves of classifier-free guidance, conditional rows first; the low-resolution image is kept once."""
        text = None
        if conditional.text is not None:
            if null.text is None:
                raise ValueError("guidance needs the null embedding beside the text")
            text = TextEmbedding.cat([conditional.text, null.text])

        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b])

        halves = Condition(
            text, None, both(conditional.aug_logsnr, null.aug_logsnr), both(conditional.label, null.label)
        )
        return replace(self.prepare(halves, grid), low_res=conditional.low_res)

    def output(self, z: Tensor, logsnr: float | Tensor, prepared: Prepared) -> Tensor:
        """The network's own prediction in float32, R C H W; z has B rows or R."""
        x = z if prepared.low_res is None else torch.cat([z, prepared.low_res], dim=1)
        copies, rest = divmod(len(prepared), len(x))
        if rest:
            raise ValueError(f"{len(prepared)} prepared rows do not fit {len(x)} images")
        if copies > 1:
            x = x.repeat(copies, 1, 1, 1)
        x = x.to(self.network.noise_embedding.linear2.weight.dtype)
        return self.network(x, prepared.modulations(logsnr), prepared.text).float()

    def forward(self, z: Tensor, logsnr: float | Tensor, prepared: Prepared) -> Denoised:
        """x0 for z B C H W at logsnr, one float for all or (B,) a level per image."""
        output = self.output(z, logsnr, prepared)
        fraction = None
        if self.learned_variance:
            output, raw = output.chunk(2, dim=1)
            fraction = (raw + 1) / 2
        if isinstance(logsnr, Tensor):
            alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(logsnr))
        else:
            alpha, sigma = alpha_sigma(logsnr)
        if len(output) != len(z):
            z = z.repeat(len(output) // len(z), 1, 1, 1)
        return Denoised(to_x0(self.prediction, output, z, alpha, sigma), fraction)
