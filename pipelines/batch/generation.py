"""`generate_batch`: many prompts to a run folder (`pipelines.batch.run` says what lies in it).

A group of images that lacks some is drawn whole, and only those that lack are written: a run that was interrupted ends
with the bytes of one that was not, at the price of some images drawn twice.

A group goes through all stages before the next one begins, so a kill costs the group being drawn and the one being
written. Where stages are offloaded as a whole (--offload model), as many groups as make `TOGETHER` images go through
one before the next is brought to the device. Their low-resolution images wait in the main memory just as they were
drawn, and the files are the same, byte for byte; but a kill then costs all of these groups.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Unpack

from tqdm import tqdm

from conditioning.text import TextEmbedding
from pipelines.arguments import MAX_SEED, unknown_words, whole_number
from pipelines.batch.run import ERRORS, Lines, claim
from pipelines.batch.settings import run_settings
from pipelines.batch.share import find_share
from pipelines.batch.texts import Rows, embed, encoder_set_aside
from pipelines.batch.writer import Drawn, Errors, Writer
from pipelines.drawing import Job, draw
from pipelines.micro_batches import MicroBatches
from pipelines.process import Process
from pipelines.prompts import PromptFile, PromptRecord
from pipelines.settings import Options, settle
from pipelines.text_to_image import Pipeline, PipelineOutput

TOGETHER = 64  # images; of 1024 px they take 0.8 GB


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
    batch_size: int = 8,
    process: Process | None = None,
    progress: bool = True,
    **options: Unpack[Options],
) -> BatchResult:
    """Draw `images_per_prompt` images of every prompt into the run folder `out`.

    model: a pipeline, or what `Pipeline.from_pretrained` takes. prompts: texts, records, or what `read_prompts` gives.
    Image k of prompt i has the seed `seed` + i * images_per_prompt + k, and is, to rounding, what `Pipeline` draws with
    it. negative_prompt: holds for all. batch_size: images drawn at a time; halved where memory runs out. process: which
    part is drawn here, None for what the launcher says. options: of `Pipeline`, see `Options`.

    Called again, it verifies what is there and makes what is missing. A prompt that the encoder refuses, or an image
    that cannot be written, is reported on stderr and in errors.jsonl, and the others go on. Setting `interrupt` of the
    pipeline ends it, without the images being drawn.

    Raises TypeError or ValueError naming the bad value and the remedy before any work starts, also for a folder made
    with other settings; MemoryError if a single image does not fit; OSError if nothing can be written any more.
    """
    if strange := sorted(options.keys() - Options.__optional_keys__):
        raise TypeError(
            f"a batch takes no {strange[0]}; its options are {', '.join(sorted(Options.__optional_keys__))}"
        )
    records = _records(prompts)
    total = len(records) * whole_number(images_per_prompt, "images_per_prompt", 1)
    whole_number(seed, "seed", 0, MAX_SEED - total)
    batches = MicroBatches(whole_number(batch_size, "batch_size", 1))
    process = process or Process.from_environment()
    pipe = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model)
    if pipe.text_encoder is None:
        raise ValueError("this cascade has no text encoder; a batch needs one, to read the prompts")
    settled = settle(pipe, **options)
    lines = "".join(record.to_json() + "\n" for record in records)
    settings = {
        **run_settings(pipe, settled, negative_prompt),
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
        share = find_share(folder, total, images_per_prompt, batch_size, process)
        texts = [record.prompt for record in records for _ in range(images_per_prompt)]

        def refused(prompt: str, error: Exception) -> None:
            errors.report(prompt=prompt, error=str(error))

        with pipe.encoder_at_work():
            groups = [[texts[j] for j in group] for group in share.groups]
            embedded = embed(pipe.text_encoder, groups, negative_prompt, refused)

        def job(group: range, rows: Rows) -> Job:
            numbers = [j for j in group if texts[j] in rows]
            return Job(
                settled,
                [seed + j for j in numbers],
                batches,
                TextEmbedding.cat([rows[texts[j]] for j in numbers]),
                embedded.away.repeat_interleave(len(numbers)),
                [texts[j] for j in numbers],
                None if negative_prompt is None else [negative_prompt] * len(numbers),
            )

        jobs = (job(group, rows) for group, rows in zip(share.groups, embedded.groups, strict=True) if rows)
        together = max(1, TOGETHER // batch_size) if pipe.brings_stages else 1
        shown = progress and process.rank == 0
        bar = tqdm(
            total=len(share.missing),
            unit="image",
            desc="batch" if process.world == 1 else f"process {process.rank} of {process.world}",
            disable=not shown,
        )
        with (
            encoder_set_aside(pipe, keep=pipe is model),
            bar,
            Writer(folder, manifest, errors, bar) as writer,
        ):
            for made in _draw(pipe, jobs, together, bars=shown and together > 1):
                images = zip(made.seeds, made.images, made.metadata, strict=True)
                writer.put(
                    Drawn(*divmod(one - seed, images_per_prompt), picture, metadata)
                    for one, picture, metadata in images
                    if one - seed in share.missing
                )
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


def _draw(pipe: Pipeline, jobs: Iterator[Job], together: int, *, bars: bool) -> Iterator[PipelineOutput]:
    """What each job gives, so many at a time drawn together, until `pipe.interrupt` is set."""
    pipe.interrupt = False
    while not pipe.interrupt and (some := list(islice(jobs, together))):
        drawn = draw(pipe, some, bars=bars)
        if pipe.interrupt:  # some are half drawn
            return
        with pipe.checker_at_work():
            outputs = [pipe._output(job, stages) for job, stages in zip(some, drawn, strict=True)]
        del drawn  # a float is four times a pixel
        yield from outputs


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
