"""benchmarks/training.py and data.py at miniature size, without the libraries they compare with."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # no installed package

import data
import training
from turns import Worker, ratio, take_turns
from workers import pictures
from workers.cascade_steps import SIDE, forward_flops
from workers.utilization import KINDS, kind

from cascade.networks.unet import UNetConfig
from cascade.stage import StageConfig


def rows(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    data.write_photos(folder, 24)
    return folder


def test_networks_are_of_the_size_they_are_listed_under() -> None:
    for size, pair in training.NETWORKS.items():
        flops = forward_flops(StageConfig("base", (SIDE, SIDE), UNetConfig(**pair.ours)), training.TOKENS)
        assert flops == pytest.approx(1e9 * size, rel=0.15)


def test_loaders_give_the_same_pictures(photos: Path) -> None:
    """Up to how they are reduced, and half a pixel in where they are cut."""
    plain = {caption: image for image, caption in islice(pictures.pillow(photos / "photos", 48), 24)}
    assert len(plain) == 24
    for layout in ("photos", "shards"):
        ours = {caption: image for image, caption in islice(pictures.cascade(photos / layout, 48), 24)}
        assert ours.keys() == plain.keys()
        for caption, image in ours.items():
            assert image.shape == (3, 48, 48)
            assert image.dtype == np.uint8
            number = int(caption.split()[-1])
            another = plain[f"photo number {(number + 1) % 24}"]
            assert distance(image, plain[caption]) < distance(image, another) / 4


def test_workers_take_turns(photos: Path) -> None:
    settings = {"loader": "pillow", "path": str(photos / "photos"), "side": 16}
    few, many = (Worker("pictures", settings | {"count": count}) for count in (1, 12))
    take_turns([few, many], turns=3, warmup=1)
    assert len(few.wall) == len(many.cpu) == 3
    assert 4 < ratio(many.cpu, few.cpu) < 40
    with pytest.raises(SystemExit, match="died"):
        Worker("pictures", settings | {"loader": "no such"})


def test_kinds_of_operations() -> None:
    names = ["aten::_scaled_dot_product_flash_attention_backward", "aten::cudnn_convolution", "aten::addmm"]
    assert [kind(name) for name in [*names, "aten::silu", "Command Buffer"]] == [
        "attention",
        "convolutions",
        "matrix products",
        list(KINDS)[-1],
        "other",
    ]


@pytest.mark.slow
def test_one_process_and_two(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(training.NETWORKS[1], width=8, attention_levels=(3,))
    monkeypatch.setitem(training.NETWORKS, 1, tiny)
    cores = sorted(os.sched_getaffinity(0))
    training.processes((cores[0], cores[-1]), network=1, batch=2, steps=1)
    printed = capsys.readouterr().out
    assert [row[0] for row in rows(printed)] == ["processes", "1", "2"]
    assert all(float(row[1].split()[0]) > 0 for row in rows(printed)[1:])
    assert "times the images of one" in printed


@pytest.mark.slow
def test_utilization() -> None:
    options = ["--device", "cpu", "--width", "8", "--batch", "1", "--steps", "1", "--workers", "0"]
    command = [sys.executable, training.__file__, "utilization", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = {row[0]: row[-1] for row in rows(done.stdout)}
    assert {"attention", "convolutions", "norms", "optimizer and EMA"} <= shares.keys()
    assert "images/s" in done.stdout
