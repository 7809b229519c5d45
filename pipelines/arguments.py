"""What a call of the pipeline asks for, checked and completed before any work starts."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cascade.chain import Cascade, Size
from cascade.stage import Sampling
from cascade.thresholding import Thresholding
from conditioning.lowres import downsample
from conditioning.text import TextEmbedding

# A larger seed would take two words of a SeedSequence, and could share its streams with a small one.
MAX_SEED = 2**32 - 1
MAX_GUIDANCE = 1000  # far beyond use; it keeps the arithmetic finite


def check_prompts(prompt: Any, name: str = "prompt", *, may_be_empty: bool = False) -> list[str]:
    """A prompt or a list of them, as a list. Raises TypeError or ValueError naming one that is no text, or empty."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise TypeError(f"{name} is {prompt!r}; expected a string or a list of strings")
    if not prompts:
        raise ValueError(f"{name} is an empty list; give at least one")
    for i, text in enumerate(prompts):
        where = name if isinstance(prompt, str) else f"{name}[{i}]"
        if not isinstance(text, str):
            raise TypeError(f"{where} is {text!r}; expected a string")
        if not may_be_empty and not text.strip():
            raise ValueError(f"{where} is {text!r}, which is empty; describe an image")
    return list(prompts)


def unknown_words(prompts: Sequence[str], vocabulary: Sequence[str]) -> list[str]:
    """The words of the prompts that are not in the vocabulary, each once, in their order."""
    known = {word.lower() for word in vocabulary}
    words = [word for prompt in prompts for word in re.findall(r"[^\W_]+", prompt.lower())]
    return list(dict.fromkeys(word for word in words if word not in known))


def whole_number(value: Any, name: str, low: int, high: int | None = None) -> int:
    """The value, if it is an int in [low, high]. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {value}; expected {span}")
    return value


def number(value: Any, name: str, low: float, high: float = math.inf) -> float:
    """The value, if it is a finite number in [low, high]. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; expected a number")
    if not (low <= value <= high and math.isfinite(value)):  # written so that NaN fails
        raise ValueError(
            f"{name} is {value}; expected a number "
            + (f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]")
        )
    return float(value)


def per_stage(value: Any, name: str, stages: int) -> list[Any]:
    """One value per stage: a scalar holds for every stage, a list is per stage, None is the stage's own."""
    if not isinstance(value, list | tuple):
        return [value] * stages
    if len(value) != stages:
        raise ValueError(
            f"{name} has {len(value)} values and the cascade {stages} stages; give one value, or one per stage"
        )
    return list(value)


def samplings(
    cascade: Cascade, steps: Any, guidance_scale: Any, thresholding: Any, aug_level: Any, sampler: Any
) -> list[Sampling]:
    """The settings of every stage: its own, where the call does not say otherwise."""
    count = len(cascade)
    columns = zip(
        cascade.stages,
        per_stage(steps, "num_inference_steps", count),
        per_stage(guidance_scale, "guidance_scale", count),
        per_stage(thresholding, "thresholding", count),
        per_stage(aug_level, "aug_level", count),
        per_stage(sampler, "sampler", count),
        strict=True,
    )
    found = []
    for stage, n, scale, limit, level, method in columns:
        own = stage.config.sampling
        if isinstance(limit, str):
            limit = replace(own.thresholding, kind=limit)
        elif limit is not None and not isinstance(limit, Thresholding):
            raise TypeError(f'thresholding is {limit!r}; expected "dynamic", "static", "none" or a Thresholding')
        if method is not None and not isinstance(method, str):
            raise TypeError(f"sampler is {method!r}; expected its name")
        sampling = own.override(
            steps=None if n is None else whole_number(n, "num_inference_steps", 1),
            guidance_scale=None if scale is None else number(scale, "guidance_scale", 0, MAX_GUIDANCE),
            thresholding=limit,
            aug_level=None if level is None else number(level, "aug_level", 0, 1),
            sampler=method,
        )
        stage.check_sampling(sampling)
        found.append(sampling)
    return found


def seeds(seed: Any, generator: Any, images: int) -> list[int]:
    """A seed per image: seed, seed + 1, ...; or drawn from the generator, or from the system's randomness."""
    if seed is not None and generator is not None:
        raise ValueError("both seed and generator are given; a generator only supplies seeds, so give one of them")
    if isinstance(generator, list | tuple):
        if len(generator) != images:
            raise ValueError(f"generator has {len(generator)} entries for {images} images; give one, or one per image")
        return [found for one in generator for found in seeds(None, one, 1)]
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is a {type(generator).__name__}; expected a torch.Generator")
    if seed is None:
        source = generator or torch.Generator().manual_seed(torch.seed())
        seed = int(torch.randint(0, MAX_SEED - images, (), generator=source, device=source.device))
    first = whole_number(seed, "seed", 0, MAX_SEED - images)
    return list(range(first, first + images))


def text_rows(embeds: TextEmbedding, name: str, width: int | None, prompts: int | None) -> TextEmbedding:
    """An embedding given instead of a prompt, checked against the networks' text width and the number of prompts."""
    if not isinstance(embeds, TextEmbedding):
        raise TypeError(f"{name} is a {type(embeds).__name__}; expected a TextEmbedding, as encode_prompt returns it")
    if embeds.width != width:
        raise ValueError(f"{name} has width {embeds.width}; the cascade's stages take {width}")
    if prompts is not None and len(embeds) != prompts:
        raise ValueError(f"{name} has {len(embeds)} rows for {prompts} prompts")
    return embeds


@dataclass(frozen=True)
class Canvas:
    """The sizes at which the stages draw, and the images they start from, one row per prompt or one for all.

    low_res: what the first stage enlarges. start: (time, image) to begin from. known, mask: what inpainting keeps, and
    where it draws (1).
    """

    sizes: list[Size]
    low_res: Tensor | None = None
    start: tuple[float, Tensor] | None = None
    known: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, prompts: int, per_prompt: int) -> "Canvas":
        """The same with a row per image, for prompts x per_prompt of them."""
        return self._each(lambda rows: rows.expand(prompts, -1, -1, -1).repeat_interleave(per_prompt, dim=0))

    def __getitem__(self, rows: slice) -> "Canvas":
        """Some of the images."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Canvas":
        low_res, known, mask = (None if t is None else change(t) for t in (self.low_res, self.known, self.mask))
        start = None if self.start is None else (self.start[0], change(self.start[1]))
        return Canvas(self.sizes, low_res, start, known, mask)


def canvas(
    cascade: Cascade,
    first: int,
    last: int,
    height: int | None,
    width: int | None,
    image: Tensor | None,
    strength: float | None,
    mask: Tensor | None,
) -> Canvas:
    """Settle sizes and starting images. Raises ValueError where they do not fit each other or the stages.

    Without strength and mask an image is what stage ``first`` enlarges. With either it is of the result's size:
    strength in (0, 1] is the time the first stage starts from, and the mask says where to draw.
    """
    stage = cascade.stages[first]
    enlarges = stage.config.low_resolution is not None
    edited = strength is not None or mask is not None
    if image is None:
        if enlarges:
            raise ValueError(f"stage {stage.config.name!r} (start_stage {first}) enlarges an image: give it as image")
        if edited:
            raise ValueError("strength and mask_image change an image: give it as image")
        return Canvas(cascade.sizes(_size(cascade, last, height, width), first=first, last=last))
    if not edited and not enlarges:
        raise ValueError(
            f"stage {stage.config.name!r} (start_stage {first}) draws from noise: with an image, give strength to vary "
            "it, mask_image to fill a part of it, or a start_stage that enlarges it"
        )
    given = image.shape[-2], image.shape[-1]
    if not edited:
        size = given
        for number_ in range(first, last + 1):
            vertical, horizontal = cascade.stages[number_].scale
            size = round(size[0] * vertical), round(size[1] * horizontal)
        if (height or size[0], width or size[1]) != size:
            raise ValueError(
                f"an image of {given[0]} x {given[1]} becomes {size[0]} x {size[1]}, not {height or size[0]} x "
                f"{width or size[1]}; leave out height and width, or resize the image"
            )
        with _saying(f"an image of {given[0]} x {given[1]} becomes {size[0]} x {size[1]}"):
            return Canvas(cascade.sizes(size, first=first, last=last), low_res=image)
    if (height or given[0], width or given[1]) != given:
        raise ValueError(f"the image is {given[0]} x {given[1]} and the result {height} x {width}; resize the image")
    with _saying(f"the image is {given[0]} x {given[1]}"):
        sizes = cascade.sizes(given, first=first, last=last)
    if mask is not None and (mask.shape[-2], mask.shape[-1]) != given:
        raise ValueError(f"mask_image is {tuple(mask.shape[-2:])} and the image {given}; they must be of one size")
    low = None
    if enlarges:
        vertical, horizontal = stage.scale
        low = downsample(image, (round(sizes[0][0] / vertical), round(sizes[0][1] / horizontal)))
    start = None if strength is None else (strength, downsample(image, sizes[0]))
    return Canvas(sizes, low, start, None if mask is None else image, mask)


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Put what the caller gave before an error about what follows from it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _size(cascade: Cascade, last: int, height: int | None, width: int | None) -> Size:
    own = cascade.stages[last].config.resolution
    for name, side in (("height", height), ("width", width)):
        if side is not None:
            whole_number(side, name, 1)
    return height or own[0], width or own[1]
