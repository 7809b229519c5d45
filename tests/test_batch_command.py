"""`cascade batch` and its launchers: exit statuses, one-line errors, processes that share a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import cli
from pipelines.batch import generate_batch, read_run
from pipelines.metadata import read_png
from pipelines.process import Process
from pipelines.prompts import read_prompts

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture
def folder(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    pipe.save_pretrained("tiny")
    Path("prompts.txt").write_text("a red car\na blue ball\n")
    return tmp_path


def command(*arguments):
    return cli.main(["batch", *arguments, "--model", "tiny"])


def test_the_command(folder, capsys):
    options = ["-n", "2", "--seed", "7", "--steps", "2", "--guidance", "2", "1"]
    assert command("prompts.txt", "-o", "run", *options) == 0
    assert capsys.readouterr().out == "run: 4 images made, 0 kept, 0 failed\n"
    before = pixels("run/images/00001-1.png")
    assert cli.main(["generate", "a blue ball", "-o", "x.png", "--seed", "10", "--model", "tiny", *options[4:]]) == 0
    assert np.abs(pixels("x.png").astype(int) - before).max() <= 1
    assert read_png(Path("x.png")) == read_png(Path("run/images/00001-1.png"))
    Path("run/images/00000-1.png").unlink()
    capsys.readouterr()
    assert command("prompts.txt", "-o", "run", *options) == 0
    assert capsys.readouterr().out == "run: 1 images made, 3 kept, 0 failed\n"


def test_a_bad_line_shows_in_the_exit_status(folder, capsys):
    Path("prompts.txt").write_bytes(b"a red car\n\xff\n")
    assert command("prompts.txt", "-o", "run") == 1
    captured = capsys.readouterr()
    assert "cascade: line 2: " in captured.err
    assert captured.out == "run: 1 images made, 0 kept, 1 failed\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.txt", "-o", "run"], "no file nothing.txt; expected a path, or a suite"),
        (["prompts.txt", "-o", "run", "--steps", "0"], "at least 1"),
        (["prompts.txt", "-o", "prompts.txt"], "prompts.txt"),
        (["prompts.txt", "-o", "run", "--device", "cuda"], "finds no GPU"),
        (["prompts.txt", "-o", "run", "-n", "0"], "error: --images is 0; expected at least 1"),
        (["prompts.txt", "-o", "run", "--batch-size", "0"], "error: --batch-size is 0; expected at least 1"),
        (["prompts.txt", "-o", "run", "--steps", "4", "0"], "error: --steps is 0; expected at least 1"),
        (["prompts.txt", "-o", "run", "--guidance", "-1"], "error: --guidance is -1.0; expected a number in [0, 1000]"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, message):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("cascade: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_no_memory_is_one_line(folder, capsys, monkeypatch, pipe):
    def fail(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(type(pipe.cascade), "sample", fail)
    assert command("prompts.txt", "-o", "run") == 2
    assert "error: there is not enough memory for a single image" in capsys.readouterr().err


def launch(*arguments, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [TORCHRUN, ACCELERATE],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_make_the_same_set(folder, launcher):
    Path("prompts.txt").write_text("a red car\na blue ball\na green house\na red ball\na blue car\n")
    call = ["pipelines.batch", "prompts.txt", "--model", "tiny", "-n", "3", "--batch-size", "2", "-o"]
    alone = launch(sys.executable, "-m", *call, "alone", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    both = launch(sys.executable, "-m", *launcher, *call, "both", cwd=folder)
    assert both.returncode == 0, both.stderr
    assert contents(folder / "both") == contents(folder / "alone")
    lines = [line for path in (folder / "both").glob("manifest-*") for line in path.read_text().splitlines()]
    assert len({(json.loads(line)["prompt"], json.loads(line)["image"]) for line in lines}) == len(lines) == 15
    assert {path.name for path in (folder / "both").glob("manifest-*")} == {"manifest-0.jsonl", "manifest-1.jsonl"}


@pytest.mark.slow
def test_a_failure_in_one_process_lets_the_others_finish(folder):
    """Process 0 has only an unreadable line to complain about, at once; its exit status must not end process 1."""
    Path("prompts.txt").write_bytes(b"\xff\n" + b"a red car\n" * 8)
    first = {"process": Process(0, 2), "batch_size": 4, "num_inference_steps": 400, "progress": False}
    generate_batch("tiny", read_prompts("prompts.txt"), "run", **first)
    assert read_run("run", complete=False).missing == [4, 5, 6, 7]
    call = ["pipelines.batch", "prompts.txt", "--model", "tiny", "--batch-size", "4", "--steps", "400", "-o", "run"]
    both = launch(sys.executable, "-m", *TORCHRUN, *call, cwd=folder)
    assert both.returncode == 1, both.stderr
    assert read_run(folder / "run").missing == []
