"""`generate_batch`: many prompts to a run folder (`pipelines.batch.run` says what lies in it).

A group of images that lacks some is drawn whole, and only those that lack are written: a run that was interrupted ends
with the bytes of one that was not, at the price of some images drawn twice.

A group goes through all stages before the next one begins. With every stage in memory, taking the whole set through one
stage first would save no loading, and would have all low-resolution images kept.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from conditioning.text import TextEmbedding
from pipelines.arguments import MAX_SEED, unknown_words, whole_number
from pipelines.batch.memory import MicroBatches
from pipelines.batch.run import ERRORS, Lines, claim
from pipelines.batch.settings import run_settings
from pipelines.batch.share import Share, find_share
from pipelines.batch.texts import Texts, embed, encoder_set_aside
from pipelines.batch.writer import Drawn, Errors, Writer
from pipelines.process import Process
from pipelines.prompts import PromptFile, PromptRecord
from pipelines.text_to_image import Pipeline


@dataclass(frozen=True)
class BatchResult:
    """What this process did for its share of a run: images made now, kept from before, and failed to make.

    failed counts the images of unreadable lines, too (in process 0).
    """

    folder: Path
    made: int
    kept: int
    failed: int


def generate_batch(
    model: Pipeline | str | Path | None,
    prompts: PromptFile | Sequence[str | PromptRecord],
    out: str | Path,
    *,
    images_per_prompt: int = 1,
    seed: int = 0,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | Sequence[int | None] | None = None,
    timesteps: str | Sequence[Any] | None = None,
    guidance_scale: float | Sequence[float | None] | None = None,
    thresholding: str | Sequence[str | None] | None = None,
    aug_level: float | Sequence[float | None] | None = None,
    sampler: str | Sequence[str | None] | None = None,
    stop_after: int | None = None,
    batch_size: int = 8,
    process: Process | None = None,
    progress: bool = True,
) -> BatchResult:
    """Draw `images_per_prompt` images of every prompt into the run folder `out`.

    model: a pipeline, or what `Pipeline.from_pretrained` takes. prompts: texts, records, or what `read_prompts` gives.
    Image k of prompt i has the seed `seed` + i * images_per_prompt + k, and is, to rounding, what `Pipeline` draws with
    it. The sampling options are those of `Pipeline`; negative_prompt holds for all. batch_size: images drawn at a time;
    halved where memory runs out. process: which part is drawn here, None for what the launcher says.

    Called again, it verifies what is there and makes what is missing. A prompt that the encoder refuses, or an image
    that cannot be written, is reported on stderr and in errors.jsonl, and the others go on.

    Raises TypeError or ValueError naming the bad value and the remedy before any work starts, also for a folder made
    with other settings; MemoryError if a single image does not fit; OSError if nothing can be written any more.
    """
    records = _records(prompts)
    total = len(records) * whole_number(images_per_prompt, "images_per_prompt", 1)
    whole_number(seed, "seed", 0, MAX_SEED - total)
    micro = MicroBatches(whole_number(batch_size, "batch_size", 1))
    process = process or Process.from_environment()
    pipe = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model)
    if pipe.text_encoder is None:
        raise ValueError("this cascade has no text encoder; a batch needs one, to read the prompts")
    options = {
        "height": height,
        "width": width,
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "guidance_scale": guidance_scale,
        "thresholding": thresholding,
        "aug_level": aug_level,
        "sampler": sampler,
        "stop_after": stop_after,
    }
    lines = "".join(record.to_json() + "\n" for record in records)
    settings = {
        **run_settings(pipe, options, negative_prompt),
        "seed": seed,
        "images_per_prompt": images_per_prompt,
        "prompts": {"count": len(records), "sha256": hashlib.sha256(lines.encode()).hexdigest()},
    }
    folder = Path(out)
    claim(folder, settings, {"model": pipe.name, "loaded_with": pipe.loaded_with, "provenance": pipe.provenance}, lines)

    errors = Errors(folder / ERRORS)
    unreadable = prompts.bad if isinstance(prompts, PromptFile) and process.rank == 0 else ()
    for bad in unreadable:
        errors.report(line=bad.line, error=bad.problem)
    if process.rank == 0:
        _warn_of_unknown_words(pipe, records)
    with closing(Lines(folder / f"manifest-{process.rank}.jsonl", exclusive=True)) as manifest:
        share = find_share(folder, total, images_per_prompt, micro.size, process)
        groups = [[records[j // images_per_prompt].prompt for j in group] for group in share.groups]

        def refused(prompt: str, error: Exception) -> None:
            errors.report(prompt=prompt, error=str(error))

        texts = embed(pipe.text_encoder, groups, negative_prompt, refused)
        bar = tqdm(
            total=len(share.missing),
            unit="image",
            desc="batch" if process.world == 1 else f"process {process.rank} of {process.world}",
            disable=not progress or process.rank > 0,
        )
        with (
            encoder_set_aside(pipe, keep=pipe is model),
            _without_its_own_bar(pipe),
            bar,
            Writer(folder, manifest, errors, bar) as writer,
        ):
            for drawn in _draw(pipe, records, share, texts, settings, options, micro):
                writer.put(drawn)
    failed = len(share.missing) - writer.made + len(unreadable) * images_per_prompt
    return BatchResult(folder, writer.made, share.kept, failed)


def _records(prompts: PromptFile | Sequence[str | PromptRecord]) -> list[PromptRecord]:
    if isinstance(prompts, str):
        raise TypeError(f"prompts is the string {prompts!r}; expected a list of them, or read_prompts(path)")
    given = prompts.records if isinstance(prompts, PromptFile) else prompts
    records = []
    for i, one in enumerate(given):
        try:
            records.append(one if isinstance(one, PromptRecord) else PromptRecord(one))
        except (TypeError, ValueError) as error:
            raise type(error)(f"prompts[{i}]: {error}") from None
    if not records:
        raise ValueError("prompts is an empty list; give at least one")
    return records


def _draw(
    pipe: Pipeline,
    records: Sequence[PromptRecord],
    share: Share,
    texts: Texts,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    micro: MicroBatches,
) -> Iterator[list[Drawn]]:
    """The images that are missing, a micro-batch at a time; without those whose prompt the encoder has refused."""
    per_prompt, seed, negative = (settings[name] for name in ("images_per_prompt", "seed", "negative_prompt"))

    for group, rows in zip(share.groups, texts.groups, strict=True):

        def draw(numbers: Sequence[int], rows: Mapping[str, TextEmbedding] = rows) -> list[Drawn]:
            places = [divmod(j, per_prompt) for j in numbers]
            out = pipe(
                # An upscaler reads the text itself.
                None if pipe.upscaler is None else [records[i].prompt for i, _ in places],
                None if pipe.upscaler is None else negative,
                prompt_embeds=TextEmbedding.cat([rows[records[i].prompt] for i, _ in places]),
                negative_prompt_embeds=texts.away.repeat_interleave(len(places)),
                seed=seed + numbers[0],
                **options,
            )
            return [
                Drawn(i, k, picture, metadata | {"prompt": records[i].prompt, "negative_prompt": negative})
                for (i, k), picture, metadata in zip(places, out.images, out.metadata, strict=True)
            ]

        for numbers in _consecutive(j for j in group if records[j // per_prompt].prompt in rows):
            for some, drawn in micro.run(numbers, draw):
                yield [one for j, one in zip(some, drawn, strict=True) if j in share.missing]


def _consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Cut ascending numbers where one is left out: a call of the pipeline has consecutive seeds."""
    return [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]


def _warn_of_unknown_words(pipe: Pipeline, records: Sequence[PromptRecord]) -> None:
    """Once for the whole run, where `Pipeline` warns at each call."""
    if pipe.vocabulary is None:
        return
    strange = [record.prompt for record in records if unknown_words([record.prompt], pipe.vocabulary)]
    if strange:
        words = unknown_words(strange, pipe.vocabulary)
        shown = ", ".join(map(repr, words[:10])) + (f" and {len(words) - 10} more" if len(words) > 10 else "")
        warnings.warn(
            f"{len(strange)} of {len(records)} prompts have words that the model was not trained on, so the pictures "
            f"cannot show them: {shown}",
            stacklevel=3,
        )


@contextmanager
def _without_its_own_bar(pipe: Pipeline) -> Iterator[None]:
    before = pipe._progress
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
