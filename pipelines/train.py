"""`cascade train`: a config file to a trained stage."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from cascade.training.config import TrainConfig


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
        dry_run: Only say what it would take, and write the first batch as a contact sheet.
    """
    from cascade.training.config import load_config

    settings = load_config(config, set)
    if dry_run:
        print(rehearse(settings, output))
        return

    from cascade.training.interruption import Interrupted
    from cascade.training.run import Run

    run = Run(settings, output, device, accept_changes=accept_changes)
    try:
        progress = run()
    except Interrupted as stop:
        if run.world.main:
            print(f"\nstopped by {stop.signal.name}; the same command goes on", file=sys.stderr)
        raise
    if run.world.main:
        print(f"{output}: {progress.batch} steps of {settings.diffusion.batch_size} images")


def rehearse(settings: "TrainConfig", output: Path) -> str:
    """What a run would take; writes its first images and captions into the folder."""
    import torch

    from cascade.training.cost import training_cost
    from cascade.training.run import open_data
    from cascade.training.samples import save_sheet

    training, _ = open_data(settings)
    size = training.transform.size
    cost = training_cost(settings.stage, size)
    images = settings.diffusion.batch_size
    at_once = images // settings.loop.accumulation
    memory = cost.memory(settings.loop, at_once)
    samples = [training[i] for i in range(min(images, 64))]
    sheet = output / "first-batch.png"
    save_sheet(torch.stack([sample.image for sample in samples]).float() / 127.5 - 1, sheet, 8)
    captions = [f"{sample.name}\t{'(dropped) ' if sample.dropped else ''}{sample.caption}" for sample in samples]
    (output / "first-batch.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    steps = settings.budget.steps
    length = f"{steps:,} steps" if steps is not None else f"{settings.budget.minutes:g} minutes"
    lines = [
        f"stage           {settings.stage.name}, trained on {size[1]} x {size[0]} px",
        f"data            {len(training.source):,} images, {settings.data.held_out} more held out",
        f"parameters      {cost.parameters / 1e6:,.1f} M",
        f"compute         {cost.flops / 1e9:,.1f} GFLOPs an image, {cost.flops * images / 1e12:,.2f} TFLOPs a step",
        f"run             {length} of {images} images",
        f"memory, about   {memory / 1e9:,.2f} GB in one process, {at_once} images at a time",
        f"first images    {sheet}",
    ]
    if steps is not None:
        epochs = steps * images / len(training.source)
        lines.insert(5, f"                {steps * images:,} images, {epochs:,.1f} epochs")
    return "\n".join(lines)
