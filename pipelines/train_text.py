"""`cascade train-text`: the captions of a data set to a small T5, for where none can be downloaded."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import tyro


def train_text(
    data: tyro.conf.Positional[str],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    split: str | None = None,
    steps: int = 500,
    vocab_size: int = 4096,
    max_skipped: float | None = None,
    device: str | None = None,
) -> None:
    """Train a small T5 on the captions of a data set by span corruption; run again, it goes on where it was.

    It is 192 wide and knows the words of these captions alone, so it does for a small world of words. For the English
    that people type, take a T5 of the hub.

    Args:
        data: A folder of images with captions, tar shards, or the hub id of a dataset.
        output: The folder to write; `--text-encoder` takes it.
        split: The part of the data; the training split if left out.
        steps: Of 64 captions each.
        vocab_size: Of the tokenizer: 291 special pieces, and those of words.
        max_skipped: The share of items that may lack a caption; 0.25 if left out.
        device: cuda if there is one, else cpu.
    """
    import torch

    from cascade.data.source import open_source
    from cascade.training.interruption import Interrupted
    from cascade.training.lock import locked
    from cascade.training.loop import Loop, LoopConfig
    from cascade.training.metrics import Console
    from cascade.training.run import check_same
    from cascade.training.schedule import Budget
    from cascade.training.span_corruption import SpanCorruption
    from cascade.training.tokenizer import train_tokenizer
    from pipelines.embed import find_captions, listing_skipped
    from pipelines.process import Process

    with listing_skipped():
        wanted, _ = find_captions(open_source(data, split), max_skipped=max_skipped)
    captions = sorted(wanted[0].values())
    settings = {"captions": hashlib.sha256("\n".join(captions).encode()).hexdigest(), "vocab_size": vocab_size}
    check_same(settings, output)
    budget = Budget(steps=steps)
    place = Process().device(device)
    output.mkdir(parents=True, exist_ok=True)
    task = SpanCorruption(captions, (), train_tokenizer(captions, output / "tokenizer", vocab_size), caption_share=1.0)
    torch.nn.Module.to(task.model, place)
    config = LoopConfig(learning_rate=2e-3, decay=0.5, ema_decay=0.99)
    loop = Loop(task, config, output, settings=settings, reporters=[Console()])
    with locked(output):
        if loop.resume():
            print(f"goes on from step {loop.progress.steps}", file=sys.stderr)
        try:
            loop.run(budget)
        except Interrupted as stop:
            print(f"\n{stop.message}", file=sys.stderr)
            raise
        with loop.ema.applied():
            task.export(output)
    print(f"{output}: a T5 of {task.tokenizer.size} pieces, trained on {len(captions)} captions")
