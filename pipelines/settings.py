"""What a call settles before any work starts: which stages run, how, and at what sizes.

An upscaler behind the cascade counts as one more stage: it is the last of a list per stage, and in start_stage and
stop_after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from cascade.chain import Size
from cascade.stage import Sampling
from pipelines.arguments import MAX_GUIDANCE, Canvas, canvas, number, per_stage, samplings, whole_number
from pipelines.timesteps import with_timesteps
from pipelines.upscaler import Upscaler, Upscaling

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline


class Options(TypedDict, total=False):
    """The options of `Pipeline` that say how images are drawn from text, whatever they show."""

    height: int | None
    width: int | None
    num_inference_steps: int | Sequence[int | None] | None
    timesteps: str | Sequence[Any] | None
    guidance_scale: float | Sequence[float | None] | None
    thresholding: str | Sequence[str | None] | None
    aug_level: float | Sequence[float | None] | None
    sampler: str | Sequence[str | None] | None
    stop_after: int | None


@dataclass(frozen=True)
class Settled:
    """What a call has settled. first, last: the stages that run. sampling: of every stage. upscaling: of the upscaler,
    whether or not it runs. canvas: of the stages that run, a row per prompt, or per image. size: of the result.
    """

    first: int
    last: int
    sampling: Sequence[Sampling]
    upscaling: Upscaling | None
    canvas: Canvas
    size: Size

    @property
    def upscales(self) -> bool:
        """Whether the upscaler runs."""
        return self.last == len(self.sampling)


def settle(
    pipe: Pipeline,
    *,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: Any = None,
    timesteps: Any = None,
    guidance_scale: Any = None,
    thresholding: Any = None,
    aug_level: Any = None,
    sampler: Any = None,
    image: Tensor | None = None,
    strength: float | None = None,
    mask: Tensor | None = None,
    start_stage: int = 0,
    stop_after: int | None = None,
) -> Settled:
    """Complete the options of `Pipeline`, each stage and the upscaler with its own where the call does not say
    otherwise. sampler, thresholding and timesteps are not for the upscaler.

    Raises TypeError or ValueError naming the bad value and the remedy.
    """
    most = len(pipe) - 1
    first = whole_number(start_stage, "start_stage", 0, most)
    last = most if stop_after is None else whole_number(stop_after, "stop_after", first, most)
    upscaling = None
    if pipe.upscaler is not None:
        (*num_inference_steps, n) = per_stage(num_inference_steps, "num_inference_steps", len(pipe))
        (*guidance_scale, scale) = per_stage(guidance_scale, "guidance_scale", len(pipe))
        (*aug_level, level) = per_stage(aug_level, "aug_level", len(pipe))
        own = Upscaling()
        upscaling = Upscaling(
            own.steps if n is None else whole_number(n, "num_inference_steps", 1),
            own.guidance_scale if scale is None else number(scale, "guidance_scale", 0, MAX_GUIDANCE),
            own.aug_level if level is None else number(level, "aug_level", 0, 1),
        )
    sampling = samplings(pipe.cascade, num_inference_steps, guidance_scale, thresholding, aug_level, sampler)
    if timesteps is not None:
        sampling = with_timesteps(pipe.cascade, sampling, timesteps, num_inference_steps)
    if strength is not None and number(strength, "strength", 0, 1) == 0:
        raise ValueError("strength is 0, which changes nothing; expected (0, 1]")

    if pipe.upscaler is None or upscaling is None or last < len(pipe.cascade):
        plan = canvas(pipe.cascade, first, last, height, width, image, strength, mask)
        return Settled(first, last, sampling, upscaling, plan, plan.sizes[-1])
    if strength is not None or mask is not None:
        raise ValueError(
            f"strength and mask_image are for an image of the cascade's own size; add stop_after={last - 1}, which "
            "leaves the upscaler out, and enlarge the result with start_stage"
        )
    plan, size = _canvas_to_enlarge(pipe, pipe.upscaler, first, height, width, image)
    pipe.upscaler.check(size, upscaling)
    factor = pipe.upscaler.factor
    return Settled(first, last, sampling, upscaling, plan, (size[0] * factor, size[1] * factor))


def _canvas_to_enlarge(
    pipe: Pipeline, upscaler: Upscaler, first: int, height: int | None, width: int | None, image: Tensor | None
) -> tuple[Canvas, Size]:
    """The canvas of the stages before the upscaler, and the size of what it enlarges to height and width."""
    for name, side in (("height", height), ("width", width)):
        if side is not None and whole_number(side, name, 1) % upscaler.factor:
            raise ValueError(f"{name} {side} is no multiple of {upscaler.factor}, by which {upscaler.name} enlarges")
    height, width = (None if side is None else side // upscaler.factor for side in (height, width))
    stages = len(pipe.cascade)
    if first < stages:
        plan = canvas(pipe.cascade, first, stages - 1, height, width, image, None, None)
        return plan, plan.sizes[-1]
    if image is None:
        raise ValueError(f"{upscaler.name} (start_stage {first}) enlarges an image: give it as image")
    size = image.shape[-2], image.shape[-1]
    if (height or size[0], width or size[1]) != size:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} is enlarged by {upscaler.factor}; leave out height and width"
        )
    return Canvas([], low_res=image), size
