"""What sampling costs, counted by torch on the meta device: no weights, no time. One multiply-add is two operations."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.denoiser import Condition
from cascade.stage import Stage
from conditioning.text import TextEmbedding

TEXT_TOKENS = 16  # of a short prompt; they weigh little


def step_flops(stage: Stage) -> int:
    """Floating-point operations of one network pass over one image; the stage is on the meta device."""
    height, width = stage.config.resolution
    network = stage.denoiser.network
    with torch.device("meta"):
        image = torch.empty(1, 3, height, width)
        text = None
        if network.text_width is not None:
            mask = torch.ones(1, TEXT_TOKENS, dtype=torch.bool)
            text = TextEmbedding(torch.empty(1, TEXT_TOKENS, network.text_width), mask, "kept")
        low_res = image if stage.config.low_resolution is not None else None
        level = torch.zeros(1) if network.augmented else None
        label = torch.zeros(1, dtype=torch.long) if network.classes is not None else None
        condition = Condition(text, low_res, level, label)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            prepared = stage.denoiser.prepare(condition, batch=1)
            stage.denoiser.output(image, torch.zeros(1), prepared)
    return counter.get_total_flops()


def image_flops(stage: Stage) -> int:
    """The same for all steps of one image at the stage's defaults: guidance doubles a pass, heun all but the last."""
    sampling = stage.config.sampling
    passes = 2 * sampling.steps - 1 if sampling.sampler == "heun" else sampling.steps
    guided = sampling.guidance_scale != 1 and stage.denoiser.network.text_width is not None
    return passes * (2 if guided else 1) * step_flops(stage)
