"""`cascade assemble`: trained stages and a text encoder to a cascade's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from cascade.stage import Stage
    from cascade.training.config import TrainConfig

GRIDS = "samples"  # the folder of sample grids within a cascade's


def assemble(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    text_encoder: str | None = None,
    revision: str | None = None,
    licence: str = "not stated",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Put trained stages and a text encoder together into a cascade that `--model` takes.

    The averaged weights of each run's newest checkpoint are taken. A text encoder in a folder is copied; one of the hub
    is named. The model card tells each stage's hyperparameters and data, with its last sample grid.

    Args:
        runs: The folders of `cascade train`, from the base up.
        output: The folder to write; a cascade that is there is replaced.
        text_encoder: A folder or a hub id; that of the runs if left out.
        revision: Of the text encoder on the hub.
        licence: Of the weights.
        dtype: What the weights are stored in.
    """
    if not runs:
        raise ValueError("give at least one run: cascade assemble BASE SR -o DIR")
    put_together(list(runs), output, text_encoder, revision, licence, dtype)
    print(output)


def put_together(
    runs: list[Path], output: Path, text_encoder: str | None, revision: str | None, licence: str, dtype: str
) -> None:
    import torch

    from cascade.build import stage_files, stage_folder
    from cascade.card import model_card
    from cascade.chain import Cascade
    from conditioning.text import TextEncoder
    from weights.store import save_cascade

    found = [read_run(run) for run in runs]
    configs = [config for config, _, _ in found]
    stages = [stage for _, stage, _ in found]
    Cascade(stages)  # does each take what the one before it draws?
    encoder, text = None, None
    described = next((config.text for config in configs if config.text is not None), None)
    if described is not None:
        name = text_encoder or next((c.text.encoder for c in configs if c.text and c.text.encoder), None)
        if name is None:
            raise ValueError("the runs read embeddings from a cache: say with --text-encoder what made them")
        encoder = TextEncoder.from_pretrained(
            name, revision=revision or described.revision, max_length=described.max_length, padding=described.padding
        )
        check_text(encoder, name, configs)
        local = Path(name).expanduser().is_dir()
        text = {"model": None if local else name, "max_length": described.max_length, "padding": described.padding}
        if not local and (revision or described.revision):
            text["revision"] = revision or described.revision
        encoder = encoder if local else None
    manifest = {
        "text_encoder": text,
        "licence": licence,
        "provenance": {config.stage.name: [made_by] for config, _, made_by in found},
    }
    files = {stage_folder(i, stage.config): stage_files(stage, getattr(torch, dtype)) for i, stage in enumerate(stages)}

    def extra(target: Path) -> None:
        if encoder is not None:
            encoder.save_pretrained(target)
        card = model_card(output.name, stages, manifest) + "".join(
            told(run, target, config, made_by) for run, (config, _, made_by) in zip(runs, found, strict=True)
        )
        (target / "README.md").write_text(card, encoding="utf-8")

    save_cascade(output, manifest, files, extra)


def read_run(run: Path) -> tuple[TrainConfig, Stage, dict[str, Any]]:
    """The config of a run, its stage with the averaged weights, and what made them. Raises ValueError."""
    from cascade.build import build_stage, load_network
    from cascade.config import decode
    from cascade.training.checkpoint import find_checkpoint, read_state, read_weights
    from cascade.training.config import TrainConfig

    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} holds no checkpoint: expected the folder of a run of `cascade train`")
    state = read_state(checkpoint)
    if state["config"] is None:
        raise ValueError(f"{checkpoint} does not say how it was trained: it is no run of `cascade train`")
    config = decode(TrainConfig, state["config"], str(checkpoint))
    stage = build_stage(config.stage)
    weights = {name.removeprefix("network."): tensor for name, tensor in read_weights(checkpoint).items()}
    load_network(stage, weights, str(checkpoint))
    progress = state["progress"]
    steps = progress["first_step"] + progress["steps"]
    made_by = {
        "steps": steps,
        "samples_seen": steps * config.diffusion.batch_size,
        "hours": round(progress["seconds"] / 3600, 2),
        "config": state["config"],
    }
    return config, stage.eval(), made_by


def check_text(encoder: Any, name: str, configs: list[TrainConfig]) -> None:
    """Raise ValueError if a stage was trained on the embeddings of another encoder."""
    from conditioning.embedding_cache import EmbeddingCache, EncoderIdentity

    for config in configs:
        width = config.stage.network.text_width
        if width is not None and width != encoder.width:
            raise ValueError(f"{name} is {encoder.width} wide, and stage {config.stage.name!r} takes text of {width}")
        if config.text is not None and config.text.embeddings is not None and Path(config.text.embeddings).is_dir():
            EmbeddingCache(config.text.embeddings, EncoderIdentity.of(encoder, name))


def told(run: Path, target: Path, config: TrainConfig, made_by: dict[str, Any]) -> str:
    """A stage's section of the model card; its last sample grid is copied."""
    name, loop, diffusion = config.stage.name, config.loop, config.diffusion
    crop = "whole images" if config.data.crop is None else f"crops of {config.data.crop} px"
    lines = [
        "",
        f"## {name}",
        "",
        f"{made_by['steps']:,} steps of {diffusion.batch_size} images, {made_by['samples_seen']:,} in all, "
        f"{made_by['hours']:g} hours; {loop.optimizer}, learning rate {loop.learning_rate:g}, "
        f"loss {diffusion.loss.name}, EMA {loop.ema_decay:g}. Data: `{Path(config.data.path).name}`, {crop}; "
        f"{config.data.text_dropout:.0%} of captions left out.",
    ]
    validation = last_validation(run)
    if validation is not None:
        lines += ["", f"Loss on held-out images: {validation:.4g}."]
    grids = sorted((run / "samples").glob("step-*.png"))
    if grids:
        (target / GRIDS).mkdir(exist_ok=True)
        shutil.copyfile(grids[-1], target / GRIDS / f"{name}.png")
        rows = "" if config.stage.low_resolution is None else ": the input enlarged, the output, the original"
        lines += ["", f"![What it draws{rows}]({GRIDS}/{name}.png)"]
    return "\n".join([*lines, ""])


def last_validation(run: Path) -> float | None:
    from cascade.training.metrics import FILE

    path = run / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line).get("validation_loss") for line in lines]
    return next((value for value in reversed(found) if value is not None), None)
