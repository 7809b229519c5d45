"""`cascade assemble`: trained stages and a text encoder to a cascade's folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from cascade.stage import Stage
    from cascade.training.config import TrainConfig
    from cascade.training.text import TextConfig
    from conditioning.text import TextEncoder

GRIDS = "samples"  # the folder of sample grids within a cascade's
NOT_STATED = "not stated"


def assemble(
    stages: tyro.conf.Positional[tuple[Path, ...]],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    text_encoder: str | None = None,
    revision: str | None = None,
    licence: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Put trained stages and a text encoder together into a cascade that `--model` takes.

    The averaged weights of each run's newest checkpoint are taken. A text encoder in a folder is copied; one of the hub
    is named. The model card tells each stage's hyperparameters and data, with its last sample grid. Where stages come
    from a cascade, or began with one, so do its safety checker and watermark.

    Args:
        stages: From the base up: the folders of `cascade train`, or of stages in a cascade's folder.
        output: The folder to write; a cascade that is there is replaced.
        text_encoder: A folder or a hub id; that of the runs if left out.
        revision: Of the text encoder on the hub.
        licence: Of the weights; that of the cascades which stages come from, or began with, if left out.
        dtype: What the weights are stored in.
    """
    if not stages:
        raise ValueError("give at least one run: cascade assemble BASE SR -o DIR")
    put_together(list(stages), output, text_encoder, revision, licence, dtype)
    print(output)


@dataclass(frozen=True)
class Part:
    """A stage, and what made it. run, config: those it was trained by; None for one out of a cascade. cascade: the
    folder of the one that it comes from, or began with.
    """

    stage: Stage
    made_by: list[dict[str, Any]]
    run: Path | None = None
    config: TrainConfig | None = None
    cascade: Path | None = None


def put_together(
    folders: list[Path], output: Path, text_encoder: str | None, revision: str | None, licence: str | None, dtype: str
) -> None:
    import torch

    from cascade.build import stage_files, stage_folder
    from cascade.card import model_card
    from cascade.chain import Cascade
    from cascade.training.text import TOKENS, TextConfig, completed, load_encoder
    from pipelines.convert import copy_guards
    from weights.store import save_cascade

    parts = [read_part(folder) for folder in folders]
    stages = [part.stage for part in parts]
    configs = [part.config for part in parts if part.config is not None]
    Cascade(stages)  # does each take what the one before it draws?
    cascades = [part.cascade for part in parts if part.cascade is not None]
    licence = licence or licence_of(cascades)
    encoder, text = None, None
    texts = [config.text for config in configs if config.text is not None]
    name = text_encoder or next((text.encoder for text in texts if text.encoder is not None), None)
    if any(stage.config.network.text_width is not None for stage in stages):
        if name is None:
            raise ValueError("nothing says what made the text embeddings: say it with --text-encoder")
        given = asdict(texts[0]) if texts else {}
        given |= {"encoder": name, "revision": revision or given.get("revision")}
        described = TextConfig(**completed(given))  # the encoder may be a cascade's
        encoder = load_encoder(described)
        check_text(encoder, name, stages, texts)
        local = Path(str(described.encoder)).expanduser().is_dir()
        text = {"model": None if local else described.encoder}
        text |= {key: getattr(described, key) for key in (*TOKENS, "null_prompt")}
        if not local and described.revision:
            text["revision"] = described.revision
        encoder = encoder if local else None
    manifest = {
        "text_encoder": text,
        "licence": licence,
        "provenance": {part.stage.config.name: part.made_by for part in parts},
    }
    files = {stage_folder(i, stage.config): stage_files(stage, getattr(torch, dtype)) for i, stage in enumerate(stages)}

    def extra(target: Path) -> None:
        if encoder is not None:
            encoder.save_pretrained(target)
        copy_guards(cascades, target)
        card = model_card(output.name, stages, manifest) + "".join(told(part, target) for part in parts)
        (target / "README.md").write_text(card, encoding="utf-8")

    save_cascade(output, manifest, files, extra)


def read_part(folder: Path) -> Part:
    """The stage of a cascade, or of a run with its averaged weights. Raises ValueError."""
    from cascade.build import build_stage, load_network, load_stage
    from cascade.config import decode
    from cascade.training.checkpoint import find_checkpoint, read_state, read_weights
    from cascade.training.config import TrainConfig
    from weights.store import MANIFEST, read_manifest

    if (folder.parent / MANIFEST).is_file():
        stage = load_stage(folder.parent, folder.name)
        history = read_manifest(folder.parent)["provenance"]
        return Part(stage, history.get(stage.config.name, [history]), cascade=folder.parent)
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise ValueError(f"{folder} holds no checkpoint: expected the folder of a run of `cascade train`")
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
    start = None if config.start_from is None else Path(config.start_from).expanduser()
    return Part(stage.eval(), [made_by], folder, config, start if start and (start / MANIFEST).is_file() else None)


def licence_of(cascades: list[Path]) -> str:
    """The one that stages come under. Raises ValueError for several."""
    from weights.store import read_manifest

    found = sorted({read_manifest(folder)["licence"] for folder in cascades} - {NOT_STATED})
    if len(found) > 1:
        raise ValueError(f"the stages come under {' and '.join(found)}: say with --licence what the whole is under")
    return found[0] if found else NOT_STATED


def check_text(encoder: TextEncoder, name: str, stages: list[Stage], texts: list[TextConfig]) -> None:
    """Raise ValueError if a stage was trained on the embeddings of another encoder."""
    from conditioning.embedding_cache import EmbeddingCache, EncoderIdentity

    for stage in stages:
        width = stage.config.network.text_width
        if width is not None and width != encoder.width:
            raise ValueError(f"{name} is {encoder.width} wide, and stage {stage.config.name!r} takes text of {width}")
    for text in texts:
        if text.embeddings is not None and Path(text.embeddings).is_dir():
            EmbeddingCache(text.embeddings, EncoderIdentity.of(encoder, name))


def told(part: Part, target: Path) -> str:
    """A trained stage's section of the model card; its last sample grid is copied."""
    if part.config is None or part.run is None:
        return ""
    run, config, made_by = part.run, part.config, part.made_by[-1]
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
    if config.start_from is not None:
        lines += ["", f"It began with the weights of `{config.start_from}`."]
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
