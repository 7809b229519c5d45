"""`Pipeline`: from a prompt to a picture, through every stage of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade.chain import Cascade
from cascade.thresholding import Thresholding
from conditioning.text import TextEmbedding, TextEncoder
from pipelines.arguments import check_prompts, seeds, whole_number
from pipelines.drawing import Callback, Job, draw
from pipelines.images import OUTPUT_TYPES, OutputType, mask_to_tensor, to_tensor
from pipelines.metadata import EMBEDDED_NAME, describe
from pipelines.micro_batches import MicroBatches
from pipelines.migration import DRAWING, LOADING, instead
from pipelines.placement import Placement
from pipelines.prompting import away, both_halves, count_rows, encode, negatives
from pipelines.safety import SafetyChecker, release
from pipelines.settings import settle
from pipelines.storage import load, save
from pipelines.upscaler import Upscaler


@dataclass(frozen=True)
class PipelineOutput:
    """images: as output_type says, in the order of the prompts, a prompt's images together. seeds: one per image.

    intermediates: with return_intermediates, what every stage that ran has drawn, in the same form. metadata: per
    image, everything it takes to draw it again. flagged: per image, whether a safety checker has blackened it.
    """

    images: Any
    seeds: list[int]
    metadata: list[dict[str, Any]]
    intermediates: list[Any] | None = None
    flagged: list[bool] | None = None


class Pipeline(Placement):
    """A cascade with its text encoder.

        pipe = Pipeline.from_pretrained()
        pipe("a red car on top of a blue house", seed=0).images[0].save("out.png")

    vocabulary: the words the cascade was trained on, if they are few; others are warned about. upscaler: enlarges what
    the cascade draws, as one more stage. safety_checker and watermarker, DeepFloyd IF's, act on what a call gives out;
    None is without. Setting ``interrupt`` to True in a callback stops the call after the step, with the images as they
    are then.
    """

    def __init__(
        self,
        cascade: Cascade,
        text_encoder: TextEncoder | None = None,
        *,
        vocabulary: Sequence[str] | None = None,
        licence: str = "",
        provenance: dict[str, Any] | None = None,
        name: str = "",
        text_source: dict[str, Any] | None = None,
        upscaler: Upscaler | None = None,
        safety_checker: SafetyChecker | None = None,
        watermarker: Any = None,
        loaded_with: dict[str, Any] | None = None,
    ) -> None:
        widths = {stage.denoiser.network.text_width for stage in cascade.stages} - {None}
        if text_encoder is not None and widths - {text_encoder.width}:
            raise ValueError(
                f"the text encoder has width {text_encoder.width}; the stages take {sorted(map(str, widths))}"
            )
        self.cascade = cascade.eval()
        self.text_encoder = text_encoder
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self.licence, self.provenance, self.name = licence, provenance or {}, name
        self.text_width = next(iter(widths), None)
        self.interrupt = False
        self.text_source = text_source or {"model": None}
        self.upscaler, self.safety_checker, self.watermarker = upscaler, safety_checker, watermarker
        self.loaded_with = loaded_with or {}  # options of `from_pretrained`, for metadata
        self._progress: dict[str, Any] = {}

    def __len__(self) -> int:
        """How many stages there are, the upscaler included."""
        return len(self.cascade) + (self.upscaler is not None)

    @classmethod
    @instead(LOADING)
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        upscalers: Sequence[str | Path] = (),
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        clean_caption: bool = False,
        safety_checker: bool = True,
        watermark: bool = True,
    ) -> Pipeline:
        """Load the embedded default (None), a folder, or a hub id. ``dtype`` None is float32, as in diffusers.

        DeepFloyd IF is read from diffusers' layout: ``upscalers`` are the folders or hub ids of the stages after the
        model; the last one may be a StableDiffusionUpscalePipeline, for any cascade. ``variant``, such as "fp16", is
        that of the files; ``safety_checker`` and ``watermark`` False leave those two out. revision: of the model.
        clean_caption: clean prompts as IF's training captions were.

        Weights in the type of their file are not read until they are needed. Raises WeightsError or ConfigError, naming
        what is missing, damaged or unknown, and the remedy.
        """
        parts = load(
            model,
            upscalers,
            dtype=dtype or torch.float32,
            revision=revision,
            variant=variant,
            clean_caption=clean_caption,
            safety_checker=safety_checker,
            watermark=watermark,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        options = {
            "upscalers": [str(each) for each in upscalers],
            "revision": revision,
            "variant": variant,
            "clean_caption": clean_caption or None,
            "safety_checker": None if safety_checker else False,
            "watermark": None if watermark else False,
        }
        loaded_with = {name: value for name, value in options.items() if value is False or value}
        return cls(**parts, name=EMBEDDED_NAME if model is None else str(model), loaded_with=loaded_with)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the cascade as a folder that `from_pretrained` reads; the same pixels come out, bit for bit.

        A text encoder that came from a hub id is named, not copied. Atomic: what was there stays until all is written.
        """
        save(self, folder)

    def set_progress_bar_config(self, **config: Any) -> None:
        """Options for tqdm, such as disable=True."""
        self._progress = config

    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None
    ) -> tuple[TextEmbedding, TextEmbedding]:
        """The embeddings of the prompts and of what guidance leads away from: the negative prompts, or no text where
        there is none, or an empty one.
        """
        prompts = check_prompts(prompt)
        with self.encoder_at_work():
            return encode(self, prompts), away(self, negative_prompt, len(prompts))

    @instead(DRAWING)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | Sequence[int | None] | None = None,
        timesteps: str | Sequence[Any] | None = None,
        guidance_scale: float | Sequence[float | None] | None = None,
        thresholding: str | Thresholding | Sequence[str | Thresholding | None] | None = None,
        aug_level: float | Sequence[float | None] | None = None,
        sampler: str | Sequence[str | None] | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask_image: Any = None,
        start_stage: int = 0,
        stop_after: int | None = None,
        prompt_embeds: TextEmbedding | None = None,
        negative_prompt_embeds: TextEmbedding | None = None,
        max_batch_size: int | None = None,
        output_type: OutputType = "pil",
        return_intermediates: bool = False,
        callback_on_step_end: Callback | None = None,
    ) -> PipelineOutput:
        """Draw images. A scalar holds for every stage, a list is per stage of the cascade, None is the stage's own.

        An upscaler is one more stage, with num_inference_steps, guidance_scale and aug_level of its own.

        prompt: one or several; or prompt_embeds (and negative_prompt_embeds) from `encode_prompt`, beside which only an
            upscaler reads the prompt. A cascade without text takes neither.
        negative_prompt: what guidance leads away from, one for all prompts or one each; "" is no text, as without it.
        height, width: of the result, in pixels; every stage draws its share.
        num_inference_steps, guidance_scale (1 is off), thresholding ("dynamic", "static", "none"), aug_level (in
            [0, 1], how far a stage may depart from its low-resolution image), sampler ("ddim", "ddpm", "dpmpp_2m",
            "heun"): per stage.
        timesteps: instead of num_inference_steps, the steps of a stage's table to visit, falling; or the name of one of
            DeepFloyd's lists, such as "smart100".
        seed: image k has seed + k, whatever batch it is drawn in. generator: only supplies seeds. Neither: drawn, and
            found in the output.
        image: with start_stage, the low-resolution image which that stage enlarges; with strength in (0, 1], an image
            to vary, of the result's size; with mask_image (white where to draw), an image to fill in.
        start_stage, stop_after: the first and the last stage to run, counted from 0.
        max_batch_size: images drawn at a time, all by default; halved where memory runs out.
        callback_on_step_end(pipe, i, logsnr, kwargs): after step i of a stage, not of the upscaler; kwargs has "stage"
            (its name), "z" and "x0" (B 3 H W in [-1, 1]).

        Raises TypeError or ValueError naming the bad value and the remedy, before any work starts.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}")
        per_prompt = whole_number(num_images_per_prompt, "num_images_per_prompt", 1)
        given = None if image is None else to_tensor(image)
        mask = None if mask_image is None else mask_to_tensor(mask_image)
        settled = settle(
            self,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            guidance_scale=guidance_scale,
            thresholding=thresholding,
            aug_level=aug_level,
            sampler=sampler,
            image=given,
            strength=strength,
            mask=mask,
            start_stage=start_stage,
            stop_after=stop_after,
        )

        prompts = None if prompt is None else check_prompts(prompt)
        rows = count_rows(self, prompts, prompt_embeds, given)
        if settled.upscales and prompts is None:
            raise ValueError("the upscaler reads the prompt itself: give prompt, also beside prompt_embeds")
        count = rows * per_prompt
        for name, tensor in (("image", given), ("mask_image", mask)):
            if tensor is not None and len(tensor) not in (1, rows):
                raise ValueError(f"{name} holds {len(tensor)} images for {rows} prompts; give one, or one each")
        batch = count if max_batch_size is None else whole_number(max_batch_size, "max_batch_size", 1)
        drawn_seeds = seeds(seed, generator, count)
        led_from = None if negative_prompt is None else negatives(negative_prompt, rows)
        text, null = None, None
        if settled.first < len(self.cascade):
            text, null = both_halves(self, prompts, negative_prompt, prompt_embeds, negative_prompt_embeds, rows)

        def per_image(values: Any) -> Any:
            return None if values is None else [values[k // per_prompt] for k in range(count)]

        job = Job(
            replace(settled, canvas=settled.canvas.rows(rows, per_prompt)),
            drawn_seeds,
            MicroBatches(batch),
            None if text is None else text.repeat_interleave(per_prompt),
            None if null is None else null.repeat_interleave(per_prompt),
            per_image(prompts) or (),
            per_image(led_from),
        )
        (drawn,) = draw(self, [job], callback_on_step_end)
        return self._output(job, drawn, output_type, return_intermediates)

    def _output(
        self, job: Job, drawn: Sequence[Tensor], output_type: OutputType = "pil", return_intermediates: bool = False
    ) -> PipelineOutput:
        """What each stage has drawn as a call gives it out, checked and marked; and what it takes to draw it again."""
        settled = job.settled
        own = {stage.config.name: each for stage, each in zip(self.cascade.stages, settled.sampling, strict=True)}
        metadata = [
            describe(
                prompt=job.prompts[k] if job.prompts else None,
                negative_prompt=None if job.negatives is None else job.negatives[k],
                seed=job.seeds[k],
                model=self.name,
                loaded_with=self.loaded_with,
                dtype=str(self.dtype).removeprefix("torch."),
                size=settled.size,
                stages=own,
                upscaler=settled.upscaling,
                start_stage=settled.first,
                stop_after=settled.last,
            )
            for k in range(len(drawn[-1]))  # an interruption leaves some out
        ]
        released = [
            release(images, output_type, self.safety_checker, self.watermarker, self._trained_height(number, images))
            for number, images in enumerate(drawn, settled.first)
            if return_intermediates or number == settled.first + len(drawn) - 1
        ]
        images, flagged = released[-1]
        intermediates = [each for each, _ in released] if return_intermediates else None
        return PipelineOutput(images, list(job.seeds[: len(metadata)]), metadata, intermediates, flagged)

    def _trained_height(self, number: int, images: Tensor) -> int:
        """What a watermark is measured by: an upscaler knows no height, so that of its images."""
        return self.cascade.stages[number].config.resolution[0] if number < len(self.cascade) else images.shape[-2]
