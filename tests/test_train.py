"""`cascade train` and `cascade assemble`: from a folder of images to a pipeline that draws."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade import Pipeline
from cascade.config import decode
from cascade.data.skipped import TooManySkipped
from cascade.training.checkpoint import find_checkpoint, read_state
from cascade.training.config import TrainConfig, load_config
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
    for name, size in (("base", (130, 64)), ("sr", (262, 196))):
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


def test_a_finished_run_is_left_as_it_is(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(made, "base") == 0
    assert "base-8: 0.2 M parameters, 14 images\n" in capfd.readouterr().err
    metrics = (made / "base" / "metrics.jsonl").read_text()
    (grid,) = (made / "base" / "samples").iterdir()
    grid.write_bytes(b"as it was")
    assert run(made, "base") == 0
    told = capfd.readouterr()
    assert "there was nothing left to do" in told.out
    assert "14 images; goes on from step 4\n" in told.err
    assert (metrics, b"as it was") == ((made / "base" / "metrics.jsonl").read_text(), grid.read_bytes())
    grid.unlink()  # as if the run had been killed before its last report
    assert run(made, "base") == 0
    assert grid.is_file()
    shutil.rmtree(made / "base" / "checkpoints")
    capfd.readouterr()
    assert run(made, "base") == 0
    assert f"begins anew: there is no checkpoint in {made / 'base'}\n" in capfd.readouterr().err


HOLD = """
import sys
from pathlib import Path
from cascade.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_do_not_train_in_one_folder(made: Path) -> None:
    """And one that is killed leaves it free."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(made / "base")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"base is in use by process {other.pid} on .*: end that, or choose"):
            run(made, "base")
        other.kill()
    assert run(made, "base") == 0


def test_a_run_goes_on_by_itself_and_refuses_another_config(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(made, "base") == 0
    assert run(made, "base", "--set", "budget.steps=6", "--set", "loop.log_every=1") == 0
    state = read_state(find_checkpoint(made / "base"))
    assert state["progress"]["steps"] == 6
    assert decode(TrainConfig, state["config"], "state").budget.steps == 6
    with pytest.raises(ValueError, match=r"another configuration \(loop\.learning_rate was 0\.001, is 0\.5\)"):
        run(made, "base", "--set", "loop.learning_rate=0.5")
    assert run(made, "base", "--set", "loop.learning_rate=0.5", "--set", "budget.steps=7", "--accept-changes") == 0
    with pytest.raises(ValueError, match=r"cannot change its optimizer \(loop\.optimizer was 'adamw', is 'muon'\)"):
        run(made, "base", "--set", "loop.optimizer=muon", "--accept-changes")


def test_a_finished_run_keeps_the_settings_that_made_it(made: Path) -> None:
    assert run(made, "base") == 0
    before = read_state(find_checkpoint(made / "base"))
    (made / "data").rename(made / "moved")
    assert run(made, "base", "--set", f'data.path="{made / "moved"}"') == 0
    assert read_state(find_checkpoint(made / "base")) == before


def test_training_starts_from_a_cascade(made: Path) -> None:
    assert run(made, "base") == 0
    assert main(["assemble", str(made / "base"), "-o", str(made / "toy")]) == 0
    start = ("--set", f'start_from="{made / "toy"}"', "--set", "loop.learning_rate=1e-9", "--set", "budget.steps=1")
    assert main(["train", str(made / "base.toml"), "-o", str(made / "more"), "--device", "cpu", *start]) == 0
    from cascade.training.checkpoint import read_weights

    old, new = (read_weights(find_checkpoint(made / name)) for name in ("base", "more"))
    assert all(torch.allclose(new[name], tensor, atol=1e-6) for name, tensor in old.items())
    assert main(["assemble", str(made / "more"), "-o", str(made / "again")]) == 0
    assert f"began with the weights of `{made / 'toy'}`" in (made / "again" / "README.md").read_text()
    for more in ((), ("--dry-run",)):
        with pytest.raises(ValueError, match=r"stage 'base-8' is another one: leave stage\.network out"):
            run(made, "base", *start, "--set", "stage.network.width=64", "-o", str(made / "wide"), *more)
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
        assert image.size == (262, 64)
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


def spoil(made: Path, count: int) -> None:
    """Of 18 images, some are no more."""
    for i in range(count):
        (made / "data" / f"{i}.png").write_bytes(b"")


def test_a_dry_run_counts_what_cannot_be_used(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "sr", "--dry-run") == 0
    assert "unusable        0 of 14 tried\n" in capsys.readouterr().out
    assert not (made / "sr" / "skipped.jsonl").exists()
    spoil(made, 4)
    assert run(made, "sr", "--dry-run", "--set", "data.max_skipped=0.5") == 0
    named = (made / "sr" / "skipped.jsonl").read_text().splitlines()
    assert 0 < len(named) <= 4
    assert f"unusable        {len(named)} of 14 tried, see {made / 'sr' / 'skipped.jsonl'}\n" in capsys.readouterr().out
    spoil(made, 14)
    with pytest.raises(TooManySkipped, match=r"1\d of 14 items \(\d\d%\) cannot be used"):
        run(made, "sr", "--dry-run")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("spoilt", "options", "said"),
    [
        (11, (), r"\d+ of \d+ items \(\d\d%\) cannot be used"),
        (18, (), "100 items in a row cannot be used"),
        (18, ("--set", "samples={}"), "100 items in a row cannot be used"),
    ],
    ids=["most", "all", "all, and the grid shows held-out images"],
)
def test_too_many_damaged_images_stop_a_run_with_their_list(
    made: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    spoilt: int,
    options: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.delenv("CASCADE_TRACEBACK")
    spoil(made, spoilt)
    assert run(made, "base", "--set", f"loop.workers={workers}", *options) == 2
    *above, error = capfd.readouterr().err.splitlines()
    log = made / "base" / "skipped.jsonl"
    remedy = f", and data.max_skipped is 0.25: mend the data, or allow more. All that were found are in {log}"
    assert re.fullmatch(f"cascade: error: {said}{re.escape(remedy)}", error)
    named = [json.loads(line)["name"] for line in log.read_text().splitlines()]
    assert len(named) == len(set(named)) > 1
    listed = [line for line in above if line.startswith("  ")]
    assert listed[:10] == [f"  {name}: the file is empty" for name in named[:10]]
    assert listed[10:] == ([f"  and {len(named) - 10} more"] if len(named) > 10 else [])


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
        ("data.held_out=18", "held_out is 18, and there are 18 items: expected 1 to 17"),
        ("trackers=['nothing']", "there is no tracker 'nothing' here"),
        (
            "loop.accumulation=3",
            r"base\.toml: a batch of 4 does not divide into 1 process\(es\) x 3 accumulated",
        ),
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


def test_steps_and_minutes_take_each_others_place(made: Path) -> None:
    assert load_config(made / "base.toml", ["budget.minutes=3"]).budget == Budget(minutes=3)
    assert load_config(made / "base.toml", ["budget.minutes=3", "budget.steps=9"]).budget == Budget(steps=9)
