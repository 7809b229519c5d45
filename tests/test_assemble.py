"""`cascade assemble`: what it refuses, and what it names rather than copies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_stages

from cascade.config import encode
from cascade.training.checkpoint import save_checkpoint
from cascade.training.config import DataConfig, TextConfig, TrainConfig
from cascade.training.ema import EMA
from cascade.training.optimizers import make_optimizer
from pipelines.assemble import put_together
from weights.store import read_manifest


@pytest.fixture
def runs(tmp_path: Path, text_encoder: Any) -> list[Path]:
    """Checkpoints of 8 -> 16 px, as training leaves them."""
    text_encoder.save_pretrained(tmp_path / "t5")
    return [saved(tmp_path / f"run-{i}", i, TextConfig(str(tmp_path / "t5"))) for i in range(2)]


def saved(run: Path, number: int, text: TextConfig, **settings: Any) -> Path:
    stage = tiny_stages()[number]
    config = encode(TrainConfig(stage.config, DataConfig("photos"), text, **settings))
    state = {"progress": {"first_step": 0, "steps": 7, "seconds": 3600.0}, "config": json.loads(json.dumps(config))}
    optimizer = make_optimizer(stage.denoiser, "adamw", 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    save_checkpoint(run, 7, stage.denoiser, EMA(stage.denoiser, 0.9), optimizer, state)
    return run


def test_the_averaged_weights_come_out(runs: list[Path], tmp_path: Path) -> None:
    import torch

    from cascade.build import load_stage

    put_together(runs, tmp_path / "toy", None, None, "MIT", "float32")
    manifest = read_manifest(tmp_path / "toy")
    assert manifest["stages"] == ["stage-0-base-8", "stage-1-sr-16"]
    assert manifest["text_encoder"] == {
        "model": None,
        "max_length": 128,
        "padding": "trimmed",
        "preprocessing": "none",
        "null_prompt": None,
    }
    assert manifest["provenance"]["sr-16"][0]["hours"] == 1.0
    for name, stage in zip(manifest["stages"], tiny_stages(), strict=True):
        stored = load_stage(tmp_path / "toy", name)
        for a, b in zip(stored.parameters(), stage.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_stage_of_a_cascade_takes_its_place_beside_runs(runs: list[Path], tmp_path: Path) -> None:
    import torch

    from cascade.build import load_stage

    put_together(runs, tmp_path / "toy", None, None, "MIT", "float32")
    put_together([runs[0], tmp_path / "toy" / "stage-1-sr-16"], tmp_path / "new", None, None, "MIT", "bfloat16")
    manifest = read_manifest(tmp_path / "new")
    assert manifest["stages"] == ["stage-0-base-8", "stage-1-sr-16"]
    assert manifest["provenance"]["sr-16"] == read_manifest(tmp_path / "toy")["provenance"]["sr-16"]
    for a, b in zip(
        load_stage(tmp_path / "new", "stage-1-sr-16").parameters(), tiny_stages()[1].parameters(), strict=True
    ):
        assert torch.equal(a, b.bfloat16())
    stages = [tmp_path / "toy" / name for name in manifest["stages"]]
    with pytest.raises(ValueError, match="say it with --text-encoder"):
        put_together(stages, tmp_path / "again", None, None, "MIT", "float32")
    put_together(stages, tmp_path / "again", str(tmp_path / "toy"), None, "MIT", "float32")
    assert read_manifest(tmp_path / "again")["text_encoder"] == read_manifest(tmp_path / "toy")["text_encoder"]


def test_licence_and_guards_come_with_stages(runs: list[Path], tmp_path: Path) -> None:
    put_together(runs, tmp_path / "own", None, None, None, "float32")
    assert read_manifest(tmp_path / "own")["licence"] == "not stated"
    put_together(runs, tmp_path / "guarded", None, None, "theirs", "float32")
    for name in ("safety_checker", "feature_extractor", "watermarker"):
        (tmp_path / "guarded" / name).mkdir()
        (tmp_path / "guarded" / name / "config.json").write_text(name)
        for file in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
            (tmp_path / "guarded" / name / file).write_bytes(b"")
    parts = [runs[0], tmp_path / "guarded" / "stage-1-sr-16"]
    put_together(parts, tmp_path / "taken", None, None, None, "float32")
    began = saved(tmp_path / "began", 1, TextConfig(str(tmp_path / "t5")), start_from=str(tmp_path / "guarded"))
    put_together([runs[0], began], tmp_path / "continued", None, None, None, "float32")
    for name in ("taken", "continued"):
        assert read_manifest(tmp_path / name)["licence"] == "theirs"
        assert (tmp_path / name / "watermarker" / "config.json").read_text() == "watermarker"
        assert (tmp_path / name / "feature_extractor" / "config.json").is_file()
    put_together(runs, tmp_path / "other", None, None, "MIT", "float32")
    mixed = [tmp_path / "other" / "stage-0-base-8", parts[1]]
    with pytest.raises(ValueError, match="the stages come under MIT and theirs: say with --licence"):
        put_together(mixed, tmp_path / "mixed", str(tmp_path / "t5"), None, None, "float32")
    put_together(mixed, tmp_path / "mixed", str(tmp_path / "t5"), None, "both", "float32")
    assert read_manifest(tmp_path / "mixed")["licence"] == "both"


def test_what_does_not_fit_is_refused(runs: list[Path], tmp_path: Path, text_encoder: Any) -> None:
    def refused(message: str, found: list[Path], text: str | None = None) -> None:
        with pytest.raises((ValueError, OSError), match=message):
            put_together(found, tmp_path / "toy", text, None, "MIT", "float32")
        assert not (tmp_path / "toy").exists()

    refused(r"enlarges images of None|before it draws", runs[::-1])
    (tmp_path / "empty").mkdir()
    refused("holds no checkpoint: expected the folder of a run", [tmp_path / "empty"])
    refused("no folder", runs, str(tmp_path / "nowhere"))
    cached = saved(tmp_path / "cached", 0, TextConfig(embeddings="gone"))
    refused("say it with --text-encoder", [cached])
    wide = replace(tiny_stages()[0].config.network, text_width=24)
    stage = replace(tiny_stages()[0].config, network=wide)
    from cascade.build import build_stage

    other = build_stage(stage)
    config = json.loads(json.dumps(encode(TrainConfig(stage, DataConfig("x"), TextConfig(str(tmp_path / "t5"))))))
    optimizer = make_optimizer(other.denoiser, "adamw", 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    state = {"progress": {"first_step": 0, "steps": 1, "seconds": 1.0}, "config": config}
    save_checkpoint(tmp_path / "wide", 1, other.denoiser, EMA(other.denoiser, 0.9), optimizer, state)
    refused("t5 is 16 wide, and stage 'base-8' takes text of 24", [tmp_path / "wide"])
    (runs[0] / "checkpoints" / "step-00000007" / "ema.safetensors").unlink()
    refused("has 0 of 1 files of its ema", runs)
