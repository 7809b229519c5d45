"""`Pipeline`: from a prompt to a picture, through every stage of a cascade."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cascade.chain import Cascade
from cascade.stage import Sampling
from cascade.thresholding import Thresholding
from conditioning.text import TextEmbedding, TextEncoder
from pipelines.arguments import (
    Canvas,
    canvas,
    check_prompts,
    number,
    samplings,
    seeds,
    text_rows,
    unknown_words,
    whole_number,
)
from pipelines.images import OUTPUT_TYPES, OutputType, mask_to_tensor, to_tensor
from pipelines.inpainting import keep_known
from pipelines.metadata import EMBEDDED_NAME, describe
from pipelines.safety import SafetyChecker, release
from pipelines.storage import load, save
from pipelines.timesteps import with_timesteps

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Any]


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


class Pipeline:
    """A cascade with its text encoder.

        pipe = Pipeline.from_pretrained()
        pipe("a red car on top of a blue house", seed=0).images[0].save("out.png")

    vocabulary: the words the cascade was trained on, if they are few; others are warned about. safety_checker and
    watermarker, DeepFloyd IF's, act on what a call gives out; None is without. Setting ``interrupt`` to True in a
    callback stops the call after the step, with the images as they are then.
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
        safety_checker: SafetyChecker | None = None,
        watermarker: Any = None,
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
        self.safety_checker, self.watermarker = safety_checker, watermarker
        self._progress: dict[str, Any] = {}

    @classmethod
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
        model; ``variant``, such as "fp16", is that of the files; ``safety_checker`` and ``watermark`` False leave those
        two out. revision: of the model. clean_caption: clean prompts as IF's training captions were.

        Raises WeightsError or ConfigError, naming what is missing, damaged or unknown, and the remedy.
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
        return cls(**parts, name=EMBEDDED_NAME if model is None else str(model))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the cascade as a folder that `from_pretrained` reads; the same pixels come out, bit for bit.

        A text encoder that came from a hub id is named, not copied. Atomic: what was there stays until all is written.
        """
        save(self, folder)

    @property
    def device(self) -> torch.device:
        return self.cascade.stages[0].device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.cascade.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Move everything, in place. The dtype is what the networks compute in; images stay float32."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.cascade.to(device=device, dtype=dtype)
        if self.text_encoder is not None:
            self.text_encoder.to(device=device, dtype=dtype)
        if self.safety_checker is not None:
            self.safety_checker.model.to(device=device, dtype=dtype)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Options for tqdm, such as disable=True."""
        self._progress = config

    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None
    ) -> tuple[TextEmbedding, TextEmbedding]:
        """The embeddings of the prompts and of what guidance leads away from: the negative prompts, or no text."""
        prompts = check_prompts(prompt)
        return self._encode(prompts), self._away(negative_prompt, len(prompts))

    def _encode(self, prompts: list[str]) -> TextEmbedding:
        if self.text_encoder is None:
            raise ValueError("this cascade has no text encoder; give prompt_embeds instead of a prompt")
        unknown = [] if self.vocabulary is None else unknown_words(prompts, self.vocabulary)
        if unknown:
            warnings.warn(
                f"not trained on {', '.join(map(repr, unknown))}, so the picture cannot show it; "
                f"the words of this model are: {', '.join(self.vocabulary or [])}",
                stacklevel=2,
            )
        return self.text_encoder(prompts)

    def _away(self, negative: str | Sequence[str] | None, rows: int) -> TextEmbedding:
        """What guidance leads away from, for `rows` prompts."""
        if negative is None:
            if self.text_encoder is None:
                return TextEmbedding.null(rows, self.text_width or 0, device=self.device)
            return self.text_encoder.null(rows)
        negatives = check_prompts(negative, "negative_prompt")
        if len(negatives) not in (1, rows):
            raise ValueError(f"negative_prompt has {len(negatives)} entries for {rows} prompts; give one, or one each")
        return self._encode(negatives * (rows // len(negatives)))

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

        prompt: one or several; or prompt_embeds (and negative_prompt_embeds) from `encode_prompt`. A cascade without
            text takes neither.
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
        max_batch_size: images drawn at a time; all by default.
        callback_on_step_end(pipe, i, logsnr, kwargs): after step i of a stage; kwargs has "stage" (its name), "z" and
            "x0" (B 3 H W in [-1, 1]).

        Raises TypeError or ValueError naming the bad value and the remedy, before any work starts.
        """
        first = whole_number(start_stage, "start_stage", 0, len(self.cascade) - 1)
        last = (
            len(self.cascade) - 1
            if stop_after is None
            else whole_number(stop_after, "stop_after", first, len(self.cascade) - 1)
        )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}")
        per_prompt = whole_number(num_images_per_prompt, "num_images_per_prompt", 1)
        settings = samplings(self.cascade, num_inference_steps, guidance_scale, thresholding, aug_level, sampler)
        if timesteps is not None:
            settings = with_timesteps(self.cascade, settings, timesteps, num_inference_steps)
        given = None if image is None else to_tensor(image)
        mask = None if mask_image is None else mask_to_tensor(mask_image)
        if strength is not None and number(strength, "strength", 0, 1) == 0:
            raise ValueError("strength is 0, which changes nothing; expected (0, 1]")
        plan = canvas(self.cascade, first, last, height, width, given, strength, mask)

        prompts = None if prompt is None else check_prompts(prompt)
        rows = self._rows(prompts, prompt_embeds, given)
        count = rows * per_prompt
        for name, tensor in (("image", given), ("mask_image", mask)):
            if tensor is not None and len(tensor) not in (1, rows):
                raise ValueError(f"{name} holds {len(tensor)} images for {rows} prompts; give one, or one each")
        batch = count if max_batch_size is None else whole_number(max_batch_size, "max_batch_size", 1)
        drawn_seeds = seeds(seed, generator, count)
        text, null = self._text(prompts, negative_prompt, prompt_embeds, negative_prompt_embeds, rows)

        self.interrupt = False
        chunks = []
        for begin in range(0, count, batch):
            chunk = slice(begin, min(begin + batch, count))
            chunks.append(
                self._draw(
                    drawn_seeds[chunk],
                    None if text is None else text.repeat_interleave(per_prompt)[chunk],
                    None if null is None else null.repeat_interleave(per_prompt)[chunk],
                    plan.rows(rows, per_prompt, chunk),
                    settings,
                    first,
                    callback_on_step_end,
                )
            )
            if self.interrupt:
                break
        stages = [torch.cat(parts) for parts in zip(*chunks, strict=False)]
        negatives = None if negative_prompt is None else check_prompts(negative_prompt, "negative_prompt")
        metadata = [
            describe(
                prompt=None if prompts is None else prompts[k // per_prompt],
                negative_prompt=None if negatives is None else negatives[k // per_prompt % len(negatives)],
                seed=image_seed,
                model=self.name,
                dtype=str(self.dtype).removeprefix("torch."),
                size=plan.sizes[-1],
                stages={stage.config.name: own for stage, own in zip(self.cascade.stages, settings, strict=True)},
                start_stage=first,
                stop_after=last,
            )
            for k, image_seed in enumerate(drawn_seeds)
        ]
        shown = stages if return_intermediates else stages[-1:]
        released = [
            release(images, output_type, self.safety_checker, self.watermarker, stage.config.resolution[0])
            for images, stage in zip(shown, self.cascade.stages[first + len(stages) - len(shown) :], strict=False)
        ]
        images, flagged = released[-1]
        intermediates = [each for each, _ in released] if return_intermediates else None
        return PipelineOutput(images, drawn_seeds, metadata, intermediates, flagged)

    def _rows(self, prompts: list[str] | None, embeds: TextEmbedding | None, image: Tensor | None) -> int:
        """How many prompts there are; without text, how many images."""
        if self.text_width is None:
            if prompts is not None or embeds is not None:
                raise ValueError("this cascade takes no text; leave out prompt and prompt_embeds")
            return 1 if image is None else len(image)
        if prompts is not None and embeds is not None:
            raise ValueError("give either prompt or prompt_embeds, not both")
        if prompts is not None:
            return len(prompts)
        if embeds is None:
            raise ValueError("give prompt or prompt_embeds: what to draw")
        return len(text_rows(embeds, "prompt_embeds", self.text_width, None))

    def _text(
        self,
        prompts: list[str] | None,
        negative: str | Sequence[str] | None,
        embeds: TextEmbedding | None,
        negative_embeds: TextEmbedding | None,
        rows: int,
    ) -> tuple[TextEmbedding | None, TextEmbedding | None]:
        """Both halves of guidance, `rows` rows each; nothing for a cascade without text."""
        if self.text_width is None:
            return None, None
        if negative is not None and negative_embeds is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds, not both")
        embeds = embeds if prompts is None else self._encode(prompts)
        if negative_embeds is not None:
            return embeds, text_rows(negative_embeds, "negative_prompt_embeds", self.text_width, rows)
        if self.text_encoder is None and embeds is not None and embeds.padding == "kept":
            raise ValueError(
                "give negative_prompt_embeds too: no text is a prompt of its own here, and nothing encodes it"
            )
        return embeds, self._away(negative, rows)

    def _draw(
        self,
        chunk: list[int],
        text: TextEmbedding | None,
        null: TextEmbedding | None,
        plan: Canvas,
        settings: list[Sampling],
        first: int,
        callback: Callback | None,
    ) -> list[Tensor]:
        """One batch through all stages; what each has drawn, on the CPU."""
        last = first + len(plan.sizes)
        after_step = None if plan.known is None or plan.mask is None else keep_known(plan.known, plan.mask)
        begins = {first: 1.0 if plan.start is None else plan.start[0]}
        counts = {
            number_: len(self.cascade.stages[number_].grid(settings[number_], begins.get(number_, 1.0))) - 1
            for number_ in range(first, last)
        }
        drawn: list[Tensor] = []
        bar = None
        for number_, step in self.cascade.sample(
            chunk,
            plan.sizes,
            text=text,
            null=null,
            samplings=settings[first:last],
            image=plan.low_res,
            first=first,
            start=None if plan.start is None else (plan.start[0], plan.start[1].to(self.device)),
            after_step=after_step,
        ):
            name, steps = self.cascade.stages[number_].config.name, counts[number_]
            bar = bar or tqdm(**({"total": steps, "desc": name, "leave": False} | self._progress))
            bar.update()
            if callback is not None:
                callback(self, step.index, step.logsnr, {"stage": name, "z": step.z, "x0": step.x0})
            if self.interrupt:
                drawn.append(step.x0.cpu())
                bar.close()
                break
            if step.index == steps - 1:
                drawn.append(step.z.cpu())
                bar.close()
                bar = None
        return drawn
