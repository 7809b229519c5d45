"""Train the embedded default: T5, 64 px base, 64 -> 256 px super-resolution.

    python -m cascade.training.toybox --minutes 60

continues from the shipped weights, whatever the hardware, and puts the better trained ones in their place. A part that
is not shipped starts from nothing. A run that was cut off is taken up by the same command: everything lies under
``runs``, in folders named after the sample where they started. The stages' settings are those of `cascade train`, in
cascade/training/configs/toybox-*.toml; only where their data comes from is said here.

    python -m cascade.training.toybox --minutes 150 --only text
    python -m cascade.training.toybox --minutes 1 --only export

trains a new text encoder, from nothing, and carries the shipped stages over to it; they then want training with it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from cascade.build import build_stage, load_network, load_stage, stage_files, stage_folder
from cascade.card import model_card
from cascade.config import decode
from cascade.data.text import plain_text
from cascade.data.toybox import caption, sample_description, vocabulary
from cascade.data.toybox.description import pick
from cascade.data.toybox.rendered import render_collection
from cascade.data.toybox.scene import GROUNDS
from cascade.stage import Stage, StageConfig
from cascade.training.carry_over import carry_over
from cascade.training.checkpoint import find_checkpoint, read_weights
from cascade.training.config import TrainConfig, load_config
from cascade.training.lock import locked
from cascade.training.loop import Loop, LoopConfig
from cascade.training.metrics import Console
from cascade.training.run import Run
from cascade.training.schedule import Budget, Progress
from cascade.training.span_corruption import SpanCorruption
from cascade.training.tokenizer import train_tokenizer
from conditioning.text import TextEmbedding, TextEncoder
from conditioning.tokenizer import Tokenizer
from weights.hub import EMBEDDED
from weights.store import read_manifest, save_cascade

CONFIGS = Path(__file__).parent / "configs"
PARTS = ("text", "base-64", "sr-256")
SHARES = {"text": 0.05, "base-64": 0.65, "sr-256": 0.30}  # of the minutes
SCENES = {"base-64": 20_480, "sr-256": 4096}  # rendered for a run
MADE = {"sr-256": 0.8}  # how often a thing has a material: all else is settled at 64 px
MAX_LENGTH = 40  # tokens of a prompt
FITTED = 6000  # captions by which stages are carried over to a new text encoder
UNSEEN_SEED = 999_983  # no run trains on scenes of this collection


@dataclass(frozen=True)
class TextRun:
    """captions: how many are trained on, beside plain text."""

    captions: int
    loop: LoopConfig


def text_config() -> TextRun:
    """The settings of the text encoder, from their file. Raises ConfigError naming an unknown or missing key."""
    path = CONFIGS / "toybox-text.toml"
    return decode(TextRun, tomllib.loads(path.read_text()), path.name)


def stage_config(part: str, known: Mapping[str, Any] | None = None) -> TrainConfig:
    """The settings of a stage, likewise; ``known``: what only a run knows, by key ("data.path")."""
    changes = [f"{key}={json.dumps(value)}" for key, value in (known or {}).items()]
    return load_config(CONFIGS / f"toybox-{part}.toml", changes)


@dataclass
class Shipped:
    """The cascade that is continued: its folder, and what its parts have behind them."""

    folder: Path

    def __post_init__(self) -> None:
        self.manifest = read_manifest(self.folder) if (self.folder / "cascade.json").exists() else None

    def history(self, part: str) -> list[dict[str, Any]]:
        """The runs that made a part, oldest first."""
        return self.manifest["provenance"].get(part, []) if self.manifest else []

    def samples(self, part: str) -> int:
        history = self.history(part)
        return history[-1]["samples_seen"] if history else 0

    def stage(self, config: StageConfig) -> Stage | None:
        """The shipped stage in float32, unless there is none, or its weights would mean something else now."""
        names = [name for name in (self.manifest or {"stages": []})["stages"] if name.endswith(config.name)]
        stage = load_stage(self.folder, names[0], torch.float32) if names else None
        if stage is None or stage.config.network != config.network or stage.config.prediction != config.prediction:
            return None
        return stage


def run_folder(runs: Path, part: str, shipped: Shipped) -> Path:
    return runs / f"{part}-from-{shipped.samples(part)}"


def train_text(minutes: float, device: str, runs: Path, shipped: Shipped) -> None:
    folder, commit = run_folder(runs, "text", shipped), present_commit()
    folder.mkdir(parents=True, exist_ok=True)
    run = text_config()
    captions = retold(run.captions)
    # Embeddings by two encoders can be compared only token by token.
    tokenizer = (shipped.folder if shipped.manifest else folder) / "tokenizer"
    if not tokenizer.exists():
        train_tokenizer([*captions, *plain_text()], tokenizer)
    task = SpanCorruption(captions, plain_text(), Tokenizer.from_folder(tokenizer))
    nn.Module.to(task.model, device)
    loop = Loop(task, run.loop, folder, reporters=[Console()])
    loop.resume()
    loop.run(Budget(minutes=minutes * SHARES["text"]))
    with loop.ema.applied():
        task.export(folder / "export")
    record(
        folder,
        part="text",
        samples=shipped.samples("text") + task.batch_size * loop.progress.steps,
        progress=loop.progress,
        device=device,
        commit=commit,
    )


def retold(count: int) -> list[str]:
    """Lines that say a scene twice, mostly in different words: what is masked in one half can be read in the other.

    In single captions any noun could stand in another's place, and a T5 that has learned so gives them all one vector.
    """
    rng = np.random.default_rng(0)
    said = [(sample_description(rng), pick(rng, GROUNDS)) for _ in range(count)]
    return [f"{caption(what, rng, ground)}, {caption(what, rng, ground)}" for what, ground in said]


def text_folder(runs: Path, shipped: Shipped) -> Path:
    """The text encoder of the stages' training: the shipped one, or the one just trained."""
    return shipped.folder if shipped.manifest else run_folder(runs, "text", shipped) / "export"


def embed(encoder: TextEncoder) -> TextEmbedding:
    """Captions by which two encoders are compared."""
    rng = np.random.default_rng(0)
    return encoder([caption(sample_description(rng), rng, pick(rng, GROUNDS)) for _ in range(FITTED)])


def scenes_seed(part: str, samples: int) -> int:
    """The collection of scenes of a run that begins after so many samples: every continuation draws its own."""
    return PARTS.index(part) + samples


def train_stage(part: str, minutes: float, device: str, runs: Path, shipped: Shipped) -> None:
    before, commit = shipped.samples(part), present_commit()
    seed = scenes_seed(part, before)
    scenes = runs / f"scenes-{part}-from-{before}"
    known = {
        "data.path": str(scenes),
        "text.encoder": str(text_folder(runs, shipped)),
        "text.max_length": MAX_LENGTH,
        "diffusion.seed": seed,
        "budget.minutes": minutes * SHARES[part],
    }
    config = stage_config(part, known)
    if shipped.stage(config.stage) is not None:
        config = replace(config, start_from=str(shipped.folder))
    render_collection(scenes, seed=seed, count=SCENES[part], size=config.stage.resolution[0], made=MADE.get(part))
    folder = run_folder(runs, part, shipped)
    run = Run(config, folder, device)

    def seen(progress: Progress) -> int:
        return before + progress.steps * config.diffusion.batch_size

    def report(progress: Progress) -> Mapping[str, float]:
        with run.loop.ema.applied():
            save_snapshot(run.stage, folder / "snapshots" / f"{seen(progress):08d}.safetensors")
        return run.report(progress)

    with locked(folder):
        run.loop.resume()
        run.loop.run(config.budget, report)
        progress = run.loop.progress
        figures = report(progress)
        record(folder, part=part, samples=seen(progress), progress=progress, device=device, commit=commit, **figures)


def save_snapshot(stage: Stage, path: Path) -> None:
    """The weights as they are now, in bf16: a point of the learning curve."""
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".part")
    save_file(dict(stage_files(stage, torch.bfloat16).tensors), fresh)
    fresh.rename(path)


def present_commit() -> str:
    """Of this code, to ask before a run: what is committed meanwhile did not make its weights."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or "unknown"


def record(
    folder: Path, *, part: str, samples: int, progress: Progress, device: str, commit: str, **figures: float
) -> None:
    """Write what made this run's weights beside them."""
    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    entry = {
        "date": date.today().isoformat(),
        "command": f"python -m cascade.training.toybox {' '.join(sys.argv[1:])}",
        "config": f"cascade/training/configs/toybox-{part}.toml",
        "samples_seen": samples,
        "minutes": round(progress.seconds / 60, 1),
        "hardware": hardware,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git_commit": commit,
        **{name: float(f"{value:.5g}") for name, value in figures.items()},
    }
    (folder / "provenance.json").write_text(json.dumps(entry, indent=2) + "\n")


def export(runs: Path, shipped: Shipped) -> None:
    """Put what finished runs made in place of the shipped weights, in bf16; parts without a run stay as they are."""
    folders = {part: run_folder(runs, part, shipped) for part in PARTS}
    ended = {part: (folder / "provenance.json").exists() for part, folder in folders.items()}
    for part, folder in folders.items():
        if not ended[part] and not shipped.history(part):
            raise SystemExit(f"{part} has no finished run in {folder} and is not shipped: train it first")
        if ended["text"] and shipped.manifest and not ended[part] and find_checkpoint(folder) is not None:
            raise SystemExit(
                f"the run in {folder} would go on with another text encoder: finish it first, or remove it"
            )
    provenance, stages, made = {}, {}, []
    encoder, carried = TextEncoder.from_pretrained(text_folder(runs, shipped), max_length=MAX_LENGTH), None
    if shipped.manifest and ended["text"]:
        before = embed(encoder)
        encoder = TextEncoder.from_pretrained(folders["text"] / "export", max_length=MAX_LENGTH)
        carried = before, embed(encoder)
    for part, folder in folders.items():
        done, finished = shipped.history(part), ended[part]
        provenance[part] = [*done, json.loads((folder / "provenance.json").read_text())] if finished else done
        if part == "text":
            continue
        config = stage_config(part).stage
        stage = None if finished else shipped.stage(config)
        if stage is None and not finished:
            raise SystemExit(
                f"the shipped {part} has another network or prediction than its preset, and no finished run: train it"
            )
        if stage is None:
            stage = build_stage(config)
            checkpoint = find_checkpoint(folder)
            assert checkpoint is not None, "a finished run has saved"
            tensors = {name.removeprefix("network."): tensor for name, tensor in read_weights(checkpoint).items()}
            load_network(stage, tensors, str(folder))
        if carried is not None:
            explained = carry_over(stage.denoiser.network, *carried)
            print(
                f"{part} carried over to the new text encoder, which explains {explained:.0%} of the old one's variance"
            )
        stage.config = config
        made.append(stage)
        stages[stage_folder(len(stages), config)] = stage_files(stage, torch.bfloat16)
    manifest = {
        "text_encoder": {
            "model": None,
            "max_length": MAX_LENGTH,
            "padding": "trimmed",
            "vocabulary": sorted(vocabulary()),
        },
        "licence": "Apache-2.0",
        "provenance": provenance,
    }

    def extra(target: Path) -> None:
        encoder.save_pretrained(target)
        (target / "README.md").write_text(model_card("toybox", made, manifest), encoding="utf-8")

    save_cascade(shipped.folder, manifest, stages, extra)
    print(f"exported to {shipped.folder}")


def train(
    minutes: float,
    device: str = "cpu",
    only: Literal["text", "base-64", "sr-256", "export"] | None = None,
    runs: Path = Path("runs/toybox"),
    weights: Path = EMBEDDED,
) -> None:
    """Train the embedded default for some minutes more, then export it.

    minutes: training time, shared among the parts as their configs say. device: "cpu", "cuda".
    only: one part and no export (or the export alone), to train parts side by side; it gets its share of the minutes.
    runs: where runs are kept. weights: the cascade that is continued and replaced.
    """
    if not minutes > 0:
        raise SystemExit(f"minutes must be positive, got {minutes}")
    shipped = Shipped(weights)
    for part in PARTS:
        if only not in (None, part) or (part == "text" and shipped.manifest and only is None):
            continue  # the stages were trained on the shipped encoder: it stays unless another is asked for
        if part == "text":
            train_text(minutes, device, runs, shipped)
        else:
            train_stage(part, minutes, device, runs, shipped)
    if only in (None, "export"):
        export(runs, shipped)


if __name__ == "__main__":
    import tyro

    tyro.cli(train)
