"""`cascade generate` and `cascade info`: files, grids, metadata, and rerunning an image from its own PNG."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from pipelines import cli


@pytest.fixture
def folder(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    pipe.vocabulary = ["a", "red", "car", "blue", "ball"]
    pipe.save_pretrained("tiny")
    return tmp_path


def generate(*arguments):
    return cli.main(["generate", *arguments, "--model", "tiny"])


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_one_prompt_one_file(folder, capsys):
    assert generate("a red car", "-o", "car.png", "--seed", "4") == 0
    assert pixels("car.png").shape == (16, 16, 3)
    assert capsys.readouterr().out == "car.png\n"


def test_several_images_are_numbered(folder):
    assert generate("a red car", "a blue ball", "-n", "2", "-o", "x.png", "--seed", "4") == 0
    assert sorted(path.name for path in folder.glob("*.png")) == [f"x-{k}.png" for k in range(4)]


def test_a_grid_has_a_row_per_prompt(folder, capsys):
    assert generate("a red car", "a blue ball", "-n", "3", "--grid", "-o", "x.png", "--seed", "4") == 0
    assert pixels("x.png").shape == (32, 48, 3)
    assert generate("a red car", "-o", "one.png", "--seed", "6") == 0
    assert np.abs(pixels("x.png")[:16, 32:].astype(int) - pixels("one.png")).max() <= 1
    assert cli.main(["info", "x.png"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    before = (folder / "x.png").read_bytes()
    assert cli.main(shlex.split(line)[1:]) == 0
    assert (folder / "x.png").read_bytes() == before


def test_the_command_in_a_png_makes_it_again(folder, capsys):
    options = ["--steps", "5", "2", "--guidance", "4.5", "1", "--sampler", "ddpm", "heun", "--aug-level", "0.25"]
    assert generate("a red car", "-o", "it's.png", "--seed", "4", "--negative-prompt", "a blue ball", *options) == 0
    before = pixels("it's.png")
    capsys.readouterr()
    assert cli.main(["info", "it's.png"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    (folder / "it's.png").unlink()
    program, *arguments = shlex.split(line)
    assert program == "cascade"
    assert cli.main(arguments) == 0
    assert (pixels("it's.png") == before).all()


def test_the_second_of_several_alone(folder, capsys):
    assert generate("a red car", "-n", "2", "-o", "x.png", "--seed", "4") == 0
    capsys.readouterr()
    assert cli.main(["info", "x-1.png"]) == 0
    before = pixels("x-1.png")
    assert cli.main(shlex.split(capsys.readouterr().out.strip().splitlines()[-1])[1:]) == 0
    assert np.abs(pixels("x-1.png").astype(int) - before).max() <= 1


def test_upscaling_is_recorded(folder, capsys):
    Image.new("RGB", (8, 8), "red").save("low.png")
    assert generate("a red car", "--image", "low.png", "--start-stage", "1", "-o", "x.png", "--seed", "4") == 0
    before = pixels("x.png")
    capsys.readouterr()
    assert cli.main(["info", "x.png"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "--image low.png --start-stage 1" in line
    assert cli.main(shlex.split(line)[1:]) == 0
    assert (pixels("x.png") == before).all()


def test_the_same_call_writes_the_same_bytes(folder):
    for name in ("a.png", "b.png"):
        assert generate("a red car", "-o", name, "--seed", "4") == 0
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()


def test_other_programs_find_their_line(folder):
    assert generate("a red car", "-o", "x.png", "--seed", "4") == 0
    with Image.open("x.png") as image:
        text = image.text
    assert text["parameters"].startswith(
        "a red car\nSteps: 4 3, Sampler: ddim ddim, CFG scale: 3 1, Seed: 4, Size: 16x16"
    )
    assert json.loads(text["cascade"])["prompt"] == "a red car"


def test_an_unknown_word_is_warned_about(folder):
    with pytest.warns(UserWarning, match="'elephant'"):
        assert generate("a red elephant", "-o", "x.png", "--seed", "4") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one prompt"),
        ([""], "empty"),
        (["a red car", "-o", "x.jpg"], "ending in .png"),
        (["a red car", "-o", "nowhere/x.png"], "make it first"),
        (["a red car", "--image", "nothing.png", "--start-stage", "1"], "nothing.png"),
        (["a red car", "--image", "text.png", "--start-stage", "1"], "no image"),
        (["a red car", "--steps", "0"], "--steps is 0; expected at least 1"),
        (["a red car", "-n", "0"], "--images is 0; expected at least 1"),
        (["a red car", "--stop-after", "2"], "--stop-after is 2; expected from 0 to 1"),
        (["a red car", "--max-batch-size", "0"], "--max-batch-size is 0; expected at least 1"),
        (["a red car", "--start-stage", "1"], r"stage 'sr-16' \(--start-stage 1\) enlarges an image"),
        (["a red car", "--steps", "1", "2", "3"], "3 values"),
        (["a red car", "--guidance", "nan"], "nan"),
        (["a red car", "--height", "17"], "try 16|try 20"),
        (["a red car", "--device", "cuda"], "finds no GPU"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, message):
    import re

    (folder / "text.png").write_text("no image")
    assert generate(*arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"cascade: error: .*({message}).*\n", error), error
    assert not list(folder.glob("out*.png"))


def test_a_missing_model(folder, capsys):
    assert cli.main(["generate", "a red car", "--model", "./nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_info_of_a_folder(folder, capsys):
    assert cli.main(["info", "tiny"]) == 0
    text = capsys.readouterr().out
    for part in ("base-8", "sr-16", "8 x 8", "16 x 16", "GFLOPs/step", "words it knows: a, red, car, blue, ball"):
        assert part in text


def test_info_counts_every_pass(pipe):
    """GFLOPs of an image: torch's own count over a real call."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cascade.build import build_stage
    from cascade.flops import image_flops

    counted = []
    for stage in pipe.cascade.stages:
        with torch.device("meta"):
            counted.append(image_flops(build_stage(stage.config)))
    embeds, null = pipe.encode_prompt("a red car")
    with FlopCounterMode(display=False) as counter:
        pipe(prompt_embeds=embeds, negative_prompt_embeds=null, seed=0)
    assert sum(counted) == pytest.approx(counter.get_total_flops(), rel=0.15)  # text keys are made once, not per step


@pytest.mark.parametrize("content", [None, b"no image"])
def test_info_of_a_png_without_metadata(folder, capsys, content):
    if content is None:
        Image.new("RGB", (4, 4)).save("x.png")
    else:
        (folder / "x.png").write_bytes(content)
    assert cli.main(["info", "x.png"]) == 2
    assert "x.png" in capsys.readouterr().err
