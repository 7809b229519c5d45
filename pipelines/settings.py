"""What a call settles with an upscaler behind the cascade: its settings beside those of the stages, and its size.

It counts as one more stage: the last of a list per stage, and of start_stage and stop_after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from cascade.chain import Size
from cascade.stage import Sampling
from pipelines.arguments import MAX_GUIDANCE, Canvas, canvas, number, per_stage, samplings, whole_number
from pipelines.timesteps import with_timesteps
from pipelines.upscaler import Upscaling

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline


def settle(
    pipe: Pipeline,
    *,
    num_inference_steps: Any = None,
    timesteps: Any = None,
    guidance_scale: Any = None,
    thresholding: Any = None,
    aug_level: Any = None,
    sampler: Any = None,
) -> tuple[list[Sampling], Upscaling | None]:
    """The settings of every stage, and of the upscaler where there is one: its own, where the call does not say
    otherwise. Options as `Pipeline` takes them; sampler, thresholding and timesteps are not for the upscaler.

    Raises TypeError or ValueError naming the bad value and the remedy.
    """
    upscaling = None
    if pipe.upscaler is not None:
        count = len(pipe)
        (*steps, n) = per_stage(num_inference_steps, "num_inference_steps", count)
        (*scales, scale) = per_stage(guidance_scale, "guidance_scale", count)
        (*levels, level) = per_stage(aug_level, "aug_level", count)
        num_inference_steps, guidance_scale, aug_level = steps, scales, levels
        own = Upscaling()
        upscaling = Upscaling(
            own.steps if n is None else whole_number(n, "num_inference_steps", 1),
            own.guidance_scale if scale is None else number(scale, "guidance_scale", 0, MAX_GUIDANCE),
            own.aug_level if level is None else number(level, "aug_level", 0, 1),
        )
    settings = samplings(pipe.cascade, num_inference_steps, guidance_scale, thresholding, aug_level, sampler)
    if timesteps is not None:
        settings = with_timesteps(pipe.cascade, settings, timesteps, num_inference_steps)
    return settings, upscaling


def settle_canvas(
    pipe: Pipeline,
    first: int,
    last: int,
    height: int | None,
    width: int | None,
    image: Tensor | None,
    strength: float | None,
    mask: Tensor | None,
    upscaling: Upscaling | None,
) -> tuple[Canvas, Size]:
    """The canvas of the stages that run, first to last, and the size of the result. Raises ValueError."""
    stages = len(pipe.cascade)
    if upscaling is None or pipe.upscaler is None or last < stages:
        plan = canvas(pipe.cascade, first, last, height, width, image, strength, mask)
        return plan, plan.sizes[-1]
    factor = pipe.upscaler.factor
    if strength is not None or mask is not None:
        raise ValueError(
            f"strength and mask_image are for an image of the cascade's own size; add stop_after={stages - 1}, which "
            "leaves the upscaler out, and enlarge the result with start_stage"
        )
    for name, side in (("height", height), ("width", width)):
        if side is not None and whole_number(side, name, 1) % factor:
            raise ValueError(f"{name} {side} is no multiple of {factor}, by which {pipe.upscaler.name} enlarges")
    height, width = (None if side is None else side // factor for side in (height, width))
    if first < stages:
        plan = canvas(pipe.cascade, first, stages - 1, height, width, image, None, None)
        size = plan.sizes[-1]
    elif image is None:
        raise ValueError(f"{pipe.upscaler.name} (start_stage {first}) enlarges an image: give it as image")
    else:
        plan, size = Canvas([], low_res=image), (image.shape[-2], image.shape[-1])
        if (height or size[0], width or size[1]) != size:
            raise ValueError(f"an image of {size[0]} x {size[1]} is enlarged by {factor}; leave out height and width")
    pipe.upscaler.check(size, upscaling)
    return plan, (size[0] * factor, size[1] * factor)
