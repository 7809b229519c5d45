"""The options that commands share: how a model is loaded, how it draws, and their names in errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from pipelines.process import Process
    from pipelines.settings import Options
    from pipelines.text_to_image import Pipeline

# What `Pipeline` and `generate_batch` call otherwise.
_FLAGS = {
    "num_images_per_prompt": "--images",
    "images_per_prompt": "--images",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("aug_level", "batch_size", "max_batch_size", "negative_prompt", "start_stage", "stop_after")
    },
}
# What a user wrote is left as it is: a quoted text, of which this finds the whole, and a name in a path or with a dot.
_WORD = re.compile(r"""(?<!\w)'(?:\\.|[^'\\])*'|(?<!\w)"(?:\\.|[^"\\])*"|(?<![\w./\\-])\w+(?![\w/\\-]|\.\w)""")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Loading:
    """Which model, and where it computes."""

    model: str | None = None  # A folder or a hub id; the embedded default if left out.
    # The stages after a DeepFloyd IF model, and a Stable Diffusion upscaler after any.
    upscalers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-u"])] = ()
    device: str | None = None  # cuda if there is one, else cpu.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # What the networks compute in.
    variant: str | None = None  # Of the model's files, such as fp16.
    revision: str | None = None  # Of the model on the hub.
    clean_caption: bool = False  # Clean prompts as DeepFloyd IF's training captions were.
    safety_checker: bool = True  # Blacken images that the model's safety checker flags.
    watermark: bool = True  # Put the model's watermark on images.
    # Keep weights off the device while they are not needed: network by network, or layer by layer.
    offload: Literal["none", "model", "sequential"] = "none"

    def pipeline(self, process: Process) -> Pipeline:
        """The model, on this process's device or computing there. Raises ValueError or OSError."""
        import torch

        from pipelines.text_to_image import Pipeline

        device = process.device(self.device)
        pipe = Pipeline.from_pretrained(
            self.model,
            upscalers=self.upscalers,
            dtype=getattr(torch, self.dtype),
            variant=self.variant,
            revision=self.revision,
            clean_caption=self.clean_caption,
            safety_checker=self.safety_checker,
            watermark=self.watermark,
        )
        if self.offload == "none":
            pipe.to(device)
        elif self.offload == "model":
            pipe.enable_model_cpu_offload(device)
        else:
            pipe.enable_sequential_cpu_offload(device)
        return pipe


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Drawing:
    """How it draws. Where several values can be given, one holds for all stages, or each is for one: --steps 32 16."""

    negative_prompt: str | None = None  # What to lead away from.
    height: int | None = None  # Of the result, in pixels.
    width: int | None = None  # Of the result, in pixels.
    steps: tuple[int, ...] = ()  # Sampling steps.
    # The steps of a stage's table to visit: 990,500,0, a list of DeepFloyd's such as smart50, or own.
    timesteps: tuple[str, ...] = ()
    sampler: tuple[str, ...] = ()  # ddim, ddpm, dpmpp_2m or heun.
    thresholding: tuple[str, ...] = ()  # dynamic, static or none.
    aug_level: tuple[float, ...] = ()  # From 0 to 1: how far a stage may depart from its low-resolution image.
    stop_after: int | None = None  # The last stage to run.

    def options(self, guidance: Sequence[float] = ()) -> Options:
        """As `Pipeline` takes them, all but the negative prompt. Raises ValueError for timesteps that are none."""
        from pipelines.timesteps import from_word

        return {
            "height": self.height,
            "width": self.width,
            "num_inference_steps": _per_stage(self.steps),
            "timesteps": _per_stage([from_word(word) for word in self.timesteps]),
            "guidance_scale": _per_stage(guidance),
            "thresholding": _per_stage(self.thresholding),
            "aug_level": _per_stage(self.aug_level),
            "sampler": _per_stage(self.sampler),
            "stop_after": self.stop_after,
        }


@contextmanager
def named_as_options() -> Iterator[None]:
    """Errors name options as they are on the command line; those about files (WeightsError) stay as they are."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = _WORD.sub(lambda word: _FLAGS.get(word[0], word[0]), str(error))
        if type(error) not in (TypeError, ValueError) or message == str(error):
            raise
        raise type(error)(message) from error


def _per_stage(values: Sequence[Any]) -> Any:
    """Nothing as None, one value as itself, several as a list."""
    return None if not values else values[0] if len(values) == 1 else list(values)
