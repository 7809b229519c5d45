"""The cascade: ordered stages, and the loop that feeds each stage's image to the next."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from cascade.randomness import Draws
from cascade.samplers import AfterStep, Step
from cascade.stage import Sampling, Stage
from conditioning.text import TextEmbedding

Size = tuple[int, int]  # height, width


class Cascade(nn.Module):
    """Any number of stages; each but the first enlarges what the one before it draws, by any ratio.

    The first is a base, or itself a super-resolution stage that starts from the caller's image (SR3). Raises ValueError
    if a stage does not take what the one before it gives.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("a cascade needs at least one stage")
        for before, after in pairwise(stages):
            if after.config.low_resolution != before.config.resolution:
                raise ValueError(
                    f"stage {after.config.name!r} enlarges images of {after.config.low_resolution}, but stage "
                    f"{before.config.name!r} before it draws {before.config.resolution}"
                )
        self.stages: Sequence[Stage]
        self.stages = nn.ModuleList(stages)  # pyright: ignore[reportAttributeAccessIssue] (a ModuleList is a sequence)

    def __len__(self) -> int:
        return len(self.stages)

    def sizes(self, size: Size | None = None, *, first: int = 0, last: int | None = None) -> list[Size]:
        """The sizes at which stages first .. last draw if the last one is to draw ``size`` (its training size if None).

        Raises ValueError, naming a size that works, if one of them cannot draw its share.
        """
        last = len(self) - 1 if last is None else last
        height, width = size or self.stages[last].config.resolution
        found: list[Size] = []
        for number in range(last, first - 1, -1):
            stage = self.stages[number]
            high, low = stage.config.resolution, stage.config.low_resolution or stage.config.resolution
            if number > first and (height * low[0] % high[0] or width * low[1] % high[1]):
                steps = [h // math.gcd(h, l) for h, l in zip(high, low, strict=True)]
                good = [max(1, round(side / step)) * step for side, step in zip((height, width), steps, strict=True)]
                raise ValueError(
                    f"stage {stage.config.name!r} enlarges by {stage.scale[0]:g} x {stage.scale[1]:g}, which "
                    f"{height} x {width} is not a whole multiple of; try {good[0]} x {good[1]}"
                )
            stage.check_size(height, width)
            found.append((height, width))
            height, width = round(height * low[0] / high[0]), round(width * low[1] / high[1])
        return found[::-1]

    def sample(
        self,
        seeds: Sequence[int],
        sizes: Sequence[Size],
        *,
        text: TextEmbedding | None = None,
        null: TextEmbedding | None = None,
        samplings: Sequence[Sampling] | None = None,
        image: Tensor | None = None,
        first: int = 0,
        start: tuple[float, Tensor] | None = None,
        after_step: Callable[[int, Draws, Size], AfterStep | None] | None = None,
    ) -> Iterator[tuple[int, Step]]:
        """Draw one image per seed with stages first, first + 1, ... at ``sizes``; yields (stage, step) each time.

        text, null: one row per seed. samplings: one per size, None for the stages' own. image: what stage ``first``
        enlarges, B 3 h w in [-1, 1]. start: see `Stage.sample`, for stage ``first``. after_step: makes the hook of a
        stage from its number, its random draws and its size.
        """
        for i, size in enumerate(sizes):
            number = first + i
            stage, draws = self.stages[number], Draws(seeds, number)
            for step in stage.sample(
                draws,
                size,
                text=None if text is None else text.to(stage.device),
                null=None if null is None else null.to(stage.device),
                low_res=None if image is None else image.to(stage.device),
                sampling=None if samplings is None else samplings[i],
                start=start if i == 0 else None,
                after_step=None if after_step is None else after_step(number, draws, size),
            ):
                image = step.z
                yield number, step
