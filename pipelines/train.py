"""`cascade train`: a config file to a trained stage."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from cascade.training.config import TrainConfig

TRIED = 500  # images that a dry run reads, in the order of training


def train(
    config: tyro.conf.Positional[Path],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    device: str | None = None,
    accept_changes: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a stage as a TOML file says; run again, it goes on where it was.

    The folder gets checkpoints/, metrics.jsonl, samples/ and config.json. SIGTERM and Ctrl-C end the step, save, and
    leave with status 143 or 130. In several processes: torchrun --nproc-per-node 8 -m pipelines.cli train CONFIG -o
    RUN, or accelerate launch -m pipelines.cli train CONFIG -o RUN.

    Args:
        config: The TOML file.
        output: The folder of the run.
        set: A change to the config, such as loop.learning_rate=1e-4; may be given several times.
        device: cuda if there is one, else cpu.
        accept_changes: Go on with a run whose config was another one.
        dry_run: Only check everything, say what it would take, and write the first batch as a contact sheet.
    """
    from cascade.training.config import load_config
    from pipelines.embed import listing_skipped
    from pipelines.process import Process

    settings = load_config(config, set)
    process = Process.from_environment()
    with listing_skipped():
        if not dry_run:
            carry_out(settings, output, device, accept_changes)
        elif process.rank == 0:
            print(rehearse(settings, output, process.world))


def carry_out(settings: "TrainConfig", output: Path, device: str | None, accept_changes: bool) -> None:
    from cascade.training.interruption import Interrupted
    from cascade.training.run import Run

    run = Run(settings, output, device, accept_changes=accept_changes)
    try:
        progress = run()
    except Interrupted as stop:
        if run.world.main:
            print(f"\n{stop.message}", file=sys.stderr)
        run.world.leave()  # all were interrupted together
        raise
    run.world.leave()
    if not run.world.main:
        return
    print(f"{output}: {progress.batch} steps of {settings.diffusion.batch_size} images")
    if progress.batch == run.began:
        print("there was nothing left to do: give it a larger budget, or put it together with `cascade assemble`")
    if run.skips.named:
        print(f"{len(run.skips.named)} images could not be used: {run.skips.path}")


def rehearse(settings: "TrainConfig", output: Path, processes: int = 1) -> str:
    """What a run would take; writes its first images and captions into the folder, and what it finds unusable.

    Raises TooManySkipped where a run would.
    """
    import torch

    from cascade.data.order import item_of
    from cascade.data.skipped import SkipLog, find_skipped
    from cascade.training.cost import training_cost
    from cascade.training.distributed import World
    from cascade.training.run import SKIPPED, check_start, check_width, open_data
    from cascade.training.samples import save_sheet
    from cascade.training.text import open_text

    images = settings.diffusion.batch_size
    at_once = len(World(0, processes).rows(images, settings.loop.accumulation)[0])
    if settings.start_from is not None:
        check_start(settings.start_from, settings.stage)
    training, _ = open_data(settings)
    text = None if settings.text is None else open_text(settings.text, torch.device("cpu"))
    check_width(settings, text)
    size = training.transform.size
    cost = training_cost(settings.stage, size)
    memory = cost.memory(settings.loop, at_once, processes)
    output.mkdir(parents=True, exist_ok=True)
    count = len(training.source)
    tried = [item_of(i, count, training.seed) for i in range(min(count, TRIED))]
    unusable = list(find_skipped(training.source, training.transform, tried))
    skips = SkipLog(output / SKIPPED, count, settings.data.max_skipped)
    skips.record([(one,) for one in unusable] + [()] * (len(tried) - len(unusable)))
    samples = [training[i] for i in range(min(images, 64))]
    if text is not None:
        text.captions([sample.caption for sample in samples[:8]])  # are they in the cache?
    sheet = output / "first-batch.png"
    save_sheet(torch.stack([sample.image for sample in samples]).float() / 127.5 - 1, sheet, 8)
    captions = [f"{sample.name}\t{'(dropped) ' if sample.dropped else ''}{sample.caption}" for sample in samples]
    (output / "first-batch.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    steps = settings.budget.steps
    among = "one process" if processes == 1 else f"each of {processes} processes"
    length = f"{steps:,} steps" if steps is not None else f"{settings.budget.minutes:g} minutes"
    held_out = settings.data.held_out
    data = f"{count:,} images" + (f", {held_out} more held out" if held_out else "")
    lines = [
        f"stage           {settings.stage.name}, trained on {size[1]} x {size[0]} px",
        f"data            {data}" + (", fewer than a batch" if count < images else ""),
        f"unusable        {len(unusable)} of {len(tried)} tried" + (f", see {skips.path}" if unusable else ""),
        f"parameters      {cost.parameters / 1e6:,.1f} M",
        f"compute         {flops(cost.flops)} an image, {flops(cost.flops * images)} a step",
        f"run             {length} of {images} images",
        f"memory, about   {memory / 1e9:,.2f} GB in {among}, {at_once} images at a time",
        f"first images    {sheet}",
    ]
    if steps is not None:
        seen = steps * images
        epochs = seen / count
        lines.insert(6, f"                {seen:,} images, {epochs:,.1f} epochs, {flops(cost.flops * seen)}")
    return "\n".join(lines)


def flops(count: float) -> str:
    """3.5 GFLOPs, 23.7 ZFLOPs."""
    power = min(max(math.floor(math.log10(count)) // 3, 3), 7)
    return f"{count / 1000**power:,.1f} {'GTPEZ'[power - 3]}FLOPs"
