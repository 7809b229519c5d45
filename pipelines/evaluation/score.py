"""`cascade drawbench score`: have a judge score the images of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.batch.run import Run
    from pipelines.evaluation.scores import Judge, Key, Scores


def score(
    run: tyro.conf.Positional[Path],
    judge: str,
    name: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> None:
    """Have a judge score the images of a run, for `cascade drawbench report`; those it has scored are passed over.

    An outside judge is a command line, to which two paths are added. It reads the first, JSON lines with prompt, image
    (their numbers), text, path, category and extra, and writes to the second, JSON lines with prompt, image, and a
    score, or whether the image is right: {"prompt": 12, "image": 3, "score": 0.31}, {..., "right": true}.

    Args:
        run: A folder that `cascade batch` wrote.
        judge: toybox, where the suite says what is expected; clip, or clip:FOLDER_OR_HUB_ID; or a command line.
        name: What to call the judge, in reports and in RUN/scores; its kind or the program's name if left out.
        batch_size: How many images toybox and clip see at a time.
        device: Of toybox and clip; cuda if there is one, else cpu.
    """
    from pipelines.batch.run import read_run
    from pipelines.evaluation.scores import score_run

    found = read_run(run, complete=False)
    scores = score_run(found, open_judge(judge, name, batch_size, device))
    print(f"{run}: {summary(scores)}")
    if found.missing:
        print(f"{run} lacks {len(found.missing)} images; when they are made, score them by the same command")


def summary(scores: Scores) -> str:
    """In one line: "toybox: 24 images, 62.5% right"."""
    mean = sum(value.score for value in scores.values.values()) / len(scores.values)
    shown = f"{100 * mean:.1f}% right" if scores.measure == "right" else f"mean score {mean:.4g}"
    return f"{scores.judge}: {len(scores.values)} images, {shown}"


def open_judge(judge: str, name: str | None = None, batch_size: int = 32, device: str | None = None) -> Judge:
    """The judge that `score` describes. Raises ValueError naming what is wrong, before any image is looked at."""
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}; expected 1 or more")
    kind, _, model = judge.partition(":")
    if judge == "toybox":
        return _toybox(name or "toybox", batch_size, device)
    if kind == "clip":
        return clip_judge(model or None, name or "clip", batch_size, device)
    from pipelines.evaluation.outside import outside_judge

    return outside_judge(judge, name)


def _toybox(name: str, batch_size: int, device: str | None) -> Judge:
    """Whether what the detector finds is what the prompt asks for."""
    from pipelines.evaluation.detector import Detector
    from pipelines.evaluation.judge import RULES, judge
    from pipelines.evaluation.metrics.images import read_image
    from pipelines.evaluation.metrics.pretrained import digest
    from pipelines.evaluation.scores import Judge
    from pipelines.evaluation.suite import from_record
    from pipelines.process import Process

    detector = Detector.from_pretrained()
    settings = detector.config
    version = f"{digest(detector)}, threshold {settings.threshold:g}, clear {settings.clear:g}, rules {RULES}"
    detector.to(Process().device(device))

    def verdicts(run: Run, todo: Sequence[Key]) -> Iterator[Mapping[str, Any]]:
        expected = {}
        for number in sorted({prompt for prompt, _ in todo}):
            record = run.prompts[number]
            try:
                expected[number] = from_record(record).expected
            except (ValueError, TypeError) as error:
                raise ValueError(f"prompt {number} ({record.prompt!r}): its expected scene is none: {error}") from None
            if expected[number] is None:
                raise ValueError(
                    f"prompt {number} ({record.prompt!r}) does not say what scene is expected; toybox judges prompts "
                    'of the toybox suite, or of others with the same "expected"'
                )
        for keys, images in _seen(run, todo, read_image, batch_size):
            for (prompt, image), found in zip(keys, detector.find(images), strict=True):
                verdict = judge(expected[prompt], found)
                yield {"prompt": prompt, "image": image, "right": verdict.right, "wrong": list(verdict.wrong)}

    return Judge(name, version, verdicts)


def clip_judge(model: str | None, name: str, batch_size: int, device: str | None) -> Judge:
    """The CLIP score of the middle square of each image with its prompt. model: a folder or a hub id."""
    from pipelines.evaluation.metrics.clip import MODEL, Clip
    from pipelines.evaluation.metrics.images import read_square
    from pipelines.evaluation.metrics.pretrained import digest
    from pipelines.evaluation.scores import Judge
    from pipelines.process import Process

    clip = Clip.from_pretrained(model or MODEL)
    version = digest(clip.model)
    clip.to(Process().device(device))

    def scored(run: Run, todo: Sequence[Key]) -> Iterator[Mapping[str, Any]]:
        for keys, images in _seen(run, todo, read_square, batch_size):
            scores = clip.score(images, [run.prompts[prompt].prompt for prompt, _ in keys]).tolist()
            for (prompt, image), value in zip(keys, scores, strict=True):
                yield {"prompt": prompt, "image": image, "score": value}

    return Judge(name, version, scored)


def _seen(
    run: Run, todo: Sequence[Key], read: Callable[[Path], Tensor], batch_size: int
) -> Iterator[tuple[Sequence[Key], Tensor]]:
    """Images B 3 H W in [-1, 1] with their numbers, a batch at a time."""
    from tqdm import tqdm

    from pipelines.evaluation.metrics.images import batches

    start = 0
    with tqdm(total=len(todo), unit="image", desc="score") as bar:
        for images in batches([run.path(*key) for key in todo], read, batch_size):
            yield todo[start : start + len(images)], images
            start += len(images)
            bar.update(len(images))
