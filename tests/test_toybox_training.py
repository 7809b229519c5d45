"""`make weights`: trained from nothing, exported, continued; with the real networks on a handful of scenes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from toybox_scenes import PHRASES, counted, read, relating

from cascade import Pipeline
from cascade.build import load_stage
from cascade.data.toybox import NOUNS, Description, held_out, plain_caption
from cascade.training import toybox
from weights.hub import EMBEDDED


@pytest.fixture
def small(monkeypatch):
    """The real networks on 12 scenes, in batches of 2."""
    text, original = toybox.text_config(), toybox.stage_config

    def stage_config(part, known=None):
        config = original(part, known)
        data = replace(config.data, held_out=4, crop=config.data.crop and 64)
        samples = replace(config.samples, prompts=config.samples.prompts[:4])
        return replace(config, data=data, diffusion=replace(config.diffusion, batch_size=2), samples=samples)

    monkeypatch.setattr(toybox, "text_config", lambda: replace(text, captions=512))  # most words whole
    monkeypatch.setattr(toybox, "stage_config", stage_config)
    monkeypatch.setattr(toybox, "FITTED", 500)
    monkeypatch.setattr(toybox, "SCENES", dict.fromkeys(toybox.SCENES, 12))


@pytest.mark.parametrize("part", toybox.PARTS)
def test_the_settings_are_read_strictly(part, monkeypatch, tmp_path):
    text = (toybox.CONFIGS / f"toybox-{part}.toml").read_text()
    (tmp_path / f"toybox-{part}.toml").write_text(text.replace("learning_rate", "learning_rte"))
    monkeypatch.setattr(toybox, "CONFIGS", tmp_path)
    with pytest.raises(ValueError, match=f"toybox-{part}.toml: loop.*'learning_rte'"):
        toybox.text_config() if part == "text" else toybox.stage_config(part)


def test_the_shares_make_up_the_minutes():
    assert toybox.SHARES.keys() == set(toybox.PARTS)
    assert sum(toybox.SHARES.values()) == pytest.approx(1)


@pytest.mark.slow
def test_weights_are_made_exported_and_continued(small, tmp_path):
    weights, runs = tmp_path / "toy", tmp_path / "runs"
    toybox.train(0.3, runs=runs, weights=weights)
    first = json.loads((weights / "cascade.json").read_text())
    assert first["stages"] == ["stage-0-base-64", "stage-1-sr-256"]
    seen = {part: first["provenance"][part][-1]["samples_seen"] for part in toybox.PARTS}
    assert all(count > 0 for count in seen.values())
    for record in (history[-1] for history in first["provenance"].values()):
        assert {"date", "command", "minutes", "hardware", "torch", "git_commit"} <= set(record)
    assert str(tmp_path) not in (weights / "cascade.json").read_text()
    assert list((runs / "base-64-from-0" / "samples").glob("*.png"))
    assert first["provenance"]["base-64"][-1]["validation_loss"] > 0

    encoder = load_file(weights / "text_encoder" / "model.safetensors")
    base = load_file(weights / "stage-0-base-64" / "model.safetensors")
    assert {tensor.dtype for tensor in [*encoder.values(), *base.values()]} == {torch.bfloat16}
    snapshots = sorted((runs / "base-64-from-0" / "snapshots").iterdir())
    last = load_file(snapshots[-1])
    assert last.keys() == base.keys()
    assert all(torch.equal(last[name], base[name]) for name in base)
    pipe = Pipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red cube", seed=0, num_inference_steps=2).images[0].size == (256, 256)

    toybox.train(0.2, runs=runs, weights=weights)
    second = json.loads((weights / "cascade.json").read_text())
    for part in toybox.PARTS:
        assert second["provenance"][part][: len(first["provenance"][part])] == first["provenance"][part]
    assert len(second["provenance"]["text"]) == 1
    assert second["provenance"]["base-64"][-1]["samples_seen"] > seen["base-64"]
    again = load_file(weights / "text_encoder" / "model.safetensors")
    assert all(torch.equal(again[name], encoder[name]) for name in encoder)
    moved = load_file(weights / "stage-0-base-64" / "model.safetensors")
    assert any(not torch.equal(moved[name], base[name]) for name in base)

    toybox.train(2.0, only="text", runs=runs, weights=weights)
    toybox.train(1, only="export", runs=runs, weights=weights)
    third = json.loads((weights / "cascade.json").read_text())
    assert [len(third["provenance"][part]) for part in toybox.PARTS] == [2, 2, 2]
    assert not torch.equal(
        load_file(weights / "text_encoder" / "model.safetensors")["shared.weight"], encoder["shared.weight"]
    )
    carried = load_file(weights / "stage-0-base-64" / "model.safetensors")
    changed = {name for name in moved if not torch.equal(carried[name], moved[name])}
    assert changed
    assert all("text" in name for name in changed)
    assert (weights / "tokenizer" / "spiece.model").read_bytes() == (
        runs / "text-from-0" / "tokenizer" / "spiece.model"
    ).read_bytes()


@pytest.mark.parametrize("part", toybox.PARTS[1:])
def test_only_weights_that_still_mean_the_same_are_continued(part):
    shipped = toybox.Shipped(EMBEDDED)
    (name,) = (name for name in shipped.manifest["stages"] if name.endswith(part))
    config = load_stage(EMBEDDED, name, torch.float32).config
    other = {"v": "x", "x": "v"}[config.prediction]
    assert shipped.stage(config) is not None
    assert shipped.stage(replace(config, prediction=other)) is None
    assert shipped.stage(replace(config, network=replace(config.network, embedding_width=64))) is None


@pytest.mark.parametrize("part", toybox.PARTS[1:])
def test_the_shipped_weights_are_those_of_the_preset(part):
    """Or `make weights` would begin anew rather than continue them."""
    assert toybox.Shipped(EMBEDDED).stage(toybox.stage_config(part).stage) is not None


def test_the_text_encoder_reads_each_scene_twice_and_nothing_held_out():
    lines = toybox.retold(1500)
    assert lines == toybox.retold(1500)
    twice = [line.split(", ") for line in lines]
    assert all(len(texts) == 2 and read(texts[0]) == read(texts[1]) for texts in twice)
    assert all(counted(first) == counted(second) for first, second in twice)
    assert sum(first != second for first, second in twice) > 0.7 * len(lines)
    looks = {look for first, _ in twice for look in read(first)}
    assert not {(look.noun, look.colour) for look in looks} & held_out().colours
    assert not {(look.noun, look.material) for look in looks} & held_out().materials
    assert {look.noun for look in looks} == set(NOUNS)


def test_the_grid_asks_for_what_the_world_has():
    for prompt in toybox.stage_config("base-64").samples.prompts:
        looks = read(prompt)
        relation = PHRASES[relating(prompt)][0] if len(looks) > 1 else None
        assert plain_caption(Description(looks, counted(prompt) if relation is None else 1, relation)) == prompt


def test_an_export_with_nothing_trained_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="train it first"):
        toybox.train(1, only="export", runs=tmp_path / "runs", weights=tmp_path / "toy")
    with pytest.raises(SystemExit, match="positive"):
        toybox.train(0, runs=tmp_path / "runs", weights=tmp_path / "toy")
