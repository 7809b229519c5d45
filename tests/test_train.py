"""`cascade train` and `cascade assemble`: from a folder of images to a pipeline that draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade import Pipeline
from cascade.config import decode, encode
from cascade.presets import imagen_base_2b
from cascade.training import recipes
from cascade.training.checkpoint import find_checkpoint, read_state
from cascade.training.config import TrainConfig, differences, load_config, merged
from cascade.training.cost import training_cost
from cascade.training.loop import LoopConfig
from cascade.training.schedule import Budget
from cascade.training.text import TextConfig
from pipelines.cli import main

BASE = """
[stage]
name = "base-8"
resolution = [8, 8]
network = {{ type = "UNet", width = 32, multipliers = [1], blocks = [1], attention_levels = [0], embedding_width = 32, \
head_channels = 32, text_width = 16 }}
schedule = {{ type = "Cosine", logsnr_max = 12.0, logsnr_min = -12.0 }}
sampling = {{ steps = 4, guidance_scale = 2.0 }}

[data]
path = "{data}"
held_out = 4

[text]
encoder = "{encoder}"
max_length = 64

[diffusion]
batch_size = 4

[loop]
bf16 = false
log_every = 2
report_every = 100
checkpoint_minutes = 0.0

[budget]
steps = 4

[samples]
prompts = ["a red car", "a blue ball"]
steps = 2
"""
SR = """
[stage]
name = "sr-16"
resolution = [16, 16]
low_resolution = [8, 8]
network = {{ type = "EfficientUNet", width = 32, multipliers = [1], blocks = [1], embedding_width = 32, heads = 2, \
text_width = 16 }}
augmentation = {{ max_level = 0.5 }}
sampling = {{ steps = 3 }}

[data]
path = "{data}"
held_out = 4
crop = 8

[text]
encoder = "{encoder}"
max_length = 64

[diffusion]
batch_size = 4

[loop]
bf16 = false

[budget]
steps = 2
"""


@pytest.fixture
def made(tmp_path: Path, text_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, a text encoder and two configs."""
    text_encoder.save_pretrained(tmp_path / "t5")
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    with (tmp_path / "data" / "metadata.jsonl").open("w") as file:
        for i, colour in enumerate(("red", "blue", "green") * 6):
            pixels = np.kron(rng.integers(256, size=(4, 5, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8))
            Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": f"a {colour} car on a blue ball"}) + "\n")
    for name, text in (("base", BASE), ("sr", SR)):
        (tmp_path / f"{name}.toml").write_text(text.format(data=tmp_path / "data", encoder=tmp_path / "t5"))
    monkeypatch.setenv("CASCADE_TRACEBACK", "1")
    return tmp_path


def run(folder: Path, name: str, *options: str) -> int:
    return main(["train", str(folder / f"{name}.toml"), "-o", str(folder / name), "--device", "cpu", *options])


@pytest.mark.parametrize(("every", "reported"), [(2, [2, 4]), (3, [3, 4])])
def test_the_last_step_is_reported_once(made: Path, every: int, reported: list[int]) -> None:
    assert run(made, "base", "--set", f"loop.report_every={every}") == 0
    lines = [json.loads(line) for line in (made / "base" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == reported


def test_from_a_folder_of_images_to_a_picture(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(made, "base") == 0
    assert run(made, "sr") == 0
    assert "4 steps of 4 images" in capfd.readouterr().out
    for name, size in (("base", (32, 8)), ("sr", (32, 24))):
        lines = [json.loads(line) for line in (made / name / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["validation_loss"] > 0
        (grid,) = (made / name / "samples").iterdir()
        with Image.open(grid) as image:
            assert image.size == size
        assert json.loads((made / name / "config.json").read_text())["data"]["held_out"] == 4
    assert main(["assemble", str(made / "base"), str(made / "sr"), "-o", str(made / "toy"), "--licence", "MIT"]) == 0
    pipe = Pipeline.from_pretrained(made / "toy")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red car", seed=0).images[0].size == (16, 16)
    assert pipe.licence == "MIT"
    card = (made / "toy" / "README.md").read_text()
    assert "## base-8" in card
    assert "4 steps of 4 images, 16 in all" in card
    assert "Loss on held-out images" in card
    assert (made / "toy" / "samples" / "sr-16.png").is_file()
    seen = json.loads((made / "toy" / "cascade.json").read_text())["provenance"]["base-8"][-1]
    assert (seen["steps"], seen["samples_seen"]) == (4, 16)
    # What is assembled can be trained on.
    assert run(made, "base", "--accept-changes", "--set", "budget.steps=5") == 0


def test_a_run_goes_on_by_itself_and_refuses_another_config(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(made, "base") == 0
    assert run(made, "base", "--set", "budget.steps=6", "--set", "loop.log_every=1") == 0
    state = read_state(find_checkpoint(made / "base"))
    assert state["progress"]["steps"] == 6
    assert decode(TrainConfig, state["config"], "state").budget.steps == 6
    with pytest.raises(ValueError, match=r"another configuration \(loop\.learning_rate was 0\.001, is 0\.5\)"):
        run(made, "base", "--set", "loop.learning_rate=0.5")
    assert run(made, "base", "--set", "loop.learning_rate=0.5", "--set", "budget.steps=7", "--accept-changes") == 0


def test_training_starts_from_a_cascade(made: Path) -> None:
    assert run(made, "base") == 0
    assert main(["assemble", str(made / "base"), "-o", str(made / "toy")]) == 0
    start = ("--set", f'start_from="{made / "toy"}"', "--set", "loop.learning_rate=1e-9", "--set", "budget.steps=1")
    assert main(["train", str(made / "base.toml"), "-o", str(made / "more"), "--device", "cpu", *start]) == 0
    from cascade.training.checkpoint import read_weights

    old, new = (read_weights(find_checkpoint(made / name)) for name in ("base", "more"))
    assert all(torch.allclose(new[name], tensor, atol=1e-6) for name, tensor in old.items())
    with pytest.raises(ValueError, match="has no stage 'sr-16'"):
        run(made, "sr", *start[:2])


def test_what_a_cascade_says_need_not_be_said_again(made: Path, pipe: Pipeline) -> None:
    pipe.save_pretrained(made / "toy")
    (made / "more.toml").write_text(
        f'start_from = "{made / "toy"}"\n[stage]\nname = "sr-16"\nsampling.steps = 7\n'
        f'[data]\npath = "{made / "data"}"\n[text]\nencoder = "{made / "toy"}"\n'
    )
    config = load_config(made / "more.toml")
    stored = pipe.cascade.stages[1].config
    assert config.stage == replace(stored, sampling=replace(stored.sampling, steps=7))
    assert config.text is not None
    assert (config.text.max_length, config.text.preprocessing) == (64, "none")
    with pytest.raises(ValueError, match=r"no stage None: stage\.name is one of base-8, sr-16"):
        load_config(made / "more.toml", ["stage={}"])


def test_captions_from_the_disk_and_prompts_by_the_encoder(made: Path) -> None:
    embed = ["embed", str(made / "data"), "--text-encoder", str(made / "t5"), "-o", str(made / "cache")]
    assert main([*embed, "--max-length", "20"]) == 0
    cached = ("--set", f'text={{ embeddings = "{made / "cache"}" }}', "--set", "budget.minutes=1e-6")
    assert load_config(made / "base.toml", cached[1::2]).text == TextConfig(
        embeddings=str(made / "cache"), max_length=20
    )
    with pytest.raises(ValueError, match=r"no embedding of the prompt .a red car.: say in text\.encoder what"):
        run(made, "base", *cached)
    assert run(made, "base", *cached, "--set", f"text.encoder={made / 't5'}") == 0
    assert main(["train", str(made / "base.toml"), "-o", str(made / "other"), *cached, "--set", "samples={}"]) == 0
    with pytest.raises(ValueError, match=r"embedded with max_length 20, and text\.max_length is 30"):
        run(made, "sr", *cached, "--set", "text.max_length=30")
    with pytest.raises(ValueError, match=r"they differ in preprocessing"):
        run(made, "sr", *cached, "--set", f"text.encoder={made / 't5'}", "--set", "text.preprocessing=lower")
    with pytest.raises(ValueError, match="the null prompt '' needs an encoder"):
        run(made, "sr", *cached, "--set", 'text.null_prompt=""')


def test_a_dry_run_says_what_it_would_take(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(made, "sr", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "trained on 8 x 8 px" in told
    assert "14 images, 4 more held out" in told
    assert "2 steps of 4 images" in told
    assert not (made / "sr" / "checkpoints").exists()
    with Image.open(made / "sr" / "first-batch.png") as image:
        assert image.size == (64, 8)
    assert "a red car" in (made / "sr" / "first-batch.txt").read_text()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(made, "sr", "--dry-run") == 0
    assert "in each of 2 processes, 2 images at a time" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert run(made, "sr", "--dry-run") == 0
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="takes 17"):
        run(made, "sr", "--dry-run", "--set", "stage.network.text_width=17")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop.learning_rte=1", r"loop has the unknown key 'learning_rte'; .* did you mean 'learning_rate'\?"),
        ("loop", "expected a change such as"),
        ("data.path.x=1", "path is no table"),
        ("recipe=imagen", "recipe 'imagen': expected one of imagen_base"),
        ("preset=none", "preset 'none': expected one of"),
        ("stage.network.text_width=17", "the text is 16 wide and the network of 'base-8' takes 17"),
        ("data.crop=8", "data.crop is for super-resolution"),
        ("data.path=/nowhere/at/all", "no folder '/nowhere/at/all'"),
        ("data.held_out=18", "18 of 18 items held out"),
        ("trackers=['nothing']", "there is no tracker 'nothing' here"),
        ("loop.accumulation=3", "a batch of 4 does not divide"),
        ("stage.network.text_width=null", "text_width must be"),
    ],
)
def test_what_is_wrong_is_said_before_training(made: Path, change: str, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run(made, "base", "--set", change)
    assert find_checkpoint(made / "base") is None


def test_seed_0_is_a_seed(made: Path) -> None:
    def losses(name: str, *options: str) -> list[float]:
        out = str(made / name)
        assert main(["train", str(made / "base.toml"), "-o", out, "--device", "cpu", *options]) == 0
        lines = [json.loads(line) for line in (made / name / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    torch.manual_seed(3)
    first = losses("a")
    torch.manual_seed(4)
    assert losses("b") == first == losses("c", "--set", "diffusion.seed=0") != losses("d", "--set", "diffusion.seed=1")


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_file_may_build_on_a_preset_and_a_recipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.toml").write_text(
        f'preset = "imagen_base_2b"\nrecipe = "{name}"\n[stage.network]\ntext_width = 512\n'
        '[data]\npath = "x"\n[text]\nembeddings = "y"\n[budget]\nminutes = 5\n'
    )
    config = load_config(tmp_path / "x.toml", ["loop.keep=3", "stage.sampling.steps=7"])
    settings = getattr(recipes, name)()
    assert config.stage.network.text_width == 512
    assert config.stage.network.width == imagen_base_2b().network.width
    assert config.stage.sampling.steps == 7
    assert config.diffusion == settings.diffusion
    assert (config.loop.keep, config.loop.learning_rate) == (3, settings.loop.learning_rate)
    assert config.budget.minutes == 5
    assert decode(TrainConfig, json.loads(json.dumps(encode(config))), "x") == config


def test_steps_and_minutes_take_each_others_place(made: Path) -> None:
    assert load_config(made / "base.toml", ["budget.minutes=3"]).budget == Budget(minutes=3)
    assert load_config(made / "base.toml", ["budget.minutes=3", "budget.steps=9"]).budget == Budget(steps=9)


def test_tables_are_merged_unless_they_are_of_another_type() -> None:
    below = {"a": {"type": "X", "b": 1, "c": 2}, "d": 3}
    assert merged(below, {"a": {"c": 4}}) == {"a": {"type": "X", "b": 1, "c": 4}, "d": 3}
    assert merged(below, {"a": {"type": "Y"}}) == {"a": {"type": "Y"}, "d": 3}


def test_differences_leave_out_what_may_change() -> None:
    before = {"loop": {"workers": 0, "learning_rate": 1.0}, "budget": {"steps": 1}, "trackers": None, "x": (1, 2)}
    now = {"loop": {"workers": 2, "learning_rate": 2.0}, "budget": {"steps": 9}, "trackers": ["a"], "x": [1, 2]}
    assert differences(before, now) == ["loop.learning_rate was 1.0, is 2.0"]


def test_the_cost_of_imagens_base_is_counted_without_its_weights() -> None:
    cost = training_cost(imagen_base_2b(), (64, 64))
    assert cost.parameters == pytest.approx(2236.1e6, rel=1e-3)
    from cascade.build import build_stage
    from cascade.flops import step_flops

    with torch.device("meta"):
        forward = step_flops(build_stage(imagen_base_2b()))
    assert cost.flops == pytest.approx(3 * forward, rel=0.05)
    assert cost.memory(LoopConfig("adafactor"), 1) < cost.memory(LoopConfig("adamw"), 1)
    assert cost.memory(LoopConfig(parallel="fsdp"), 1, processes=8) < 0.5 * cost.memory(LoopConfig(), 1, processes=8)
