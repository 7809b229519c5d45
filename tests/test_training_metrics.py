"""cascade/training/metrics.py: what a run says of itself, and to whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from training_tasks import LOOP, log, task

from cascade.training.loop import Loop
from cascade.training.metrics import (
    Console,
    MetricsFile,
    duration,
    peak_flops,
    progress_line,
    rounded,
    tracker_names,
    trackers,
)
from cascade.training.schedule import Budget

LINE = {
    "step": 1200,
    "spent": 0.38,
    "images_per_second": 412.3456,
    "seconds_left": 11540.0,
    "memory_gb": 31.24,
    "bad_steps": 0,
    "lr": 1e-4,
    "loss": 0.031234,
    "grad_norm": 0.2101,
}


def test_one_line_says_how_it_goes() -> None:
    assert progress_line(LINE) == (
        "step 1,200  38%  412.3 images/s  loss 0.03123  lr 1.0e-04  grad 0.2101  mem 31.2 GB  left 3 h 12 min"
    )
    assert "mem 31.2 GB  MFU 44%  bad steps 3  left" in progress_line(LINE | {"mfu": 0.4449, "bad_steps": 3})
    assert "loss -  lr 1.0e-04  grad -  " in progress_line(LINE | {"loss": None, "grad_norm": None})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (4 * 86400 + 7200, "4 d 2 h")],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_off_a_terminal_lines_are_few_and_the_last_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(seconds=1e9)
    for step, spent in ((1, 0.1), (2, 0.2), (3, 1.0)):
        console(LINE | {"step": step, "spent": spent})
        console({"step": step, "validation_loss": 0.25})
    console.say("words")
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "step 1",
        "step 1",
        "step 2",
        "step 3",
        "step 3",
        "words",
    ]


def test_on_a_terminal_a_line_is_renewed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console = Console()
    console(LINE)
    console(LINE)
    console({"step": 1200, "validation_loss": 0.25})
    line = progress_line(LINE)
    assert capsys.readouterr().err == f"\r\033[K{line}\r\033[K{line}\r\033[Kstep 1,200  validation_loss 0.25\n"


def test_figures_are_rounded_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    MetricsFile(tmp_path)(rounded({"step": 3, "loss": 1 / 3, "grad_norm": float("inf")}))
    assert log(tmp_path) == [{"step": 3, "loss": 0.333333, "grad_norm": None}]


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
    ],
)
def test_gpus_are_told_apart(monkeypatch: pytest.MonkeyPatch, name: str, flops: float | None) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == flops
    assert peak_flops(torch.device("cpu")) is None


def test_the_share_of_the_hardwares_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.training.loop.peak_flops", lambda device: 1e9)
    monkeypatch.setattr("cascade.training.loop.computes_bf16", lambda device_type: True)
    Loop(task(), replace(LOOP, bf16=True), tmp_path, flops=2e6).run(Budget(steps=2))
    for line in log(tmp_path):
        assert line["mfu"] == pytest.approx(2e6 / (1e9 * line["seconds_per_step"]), rel=1e-4)


def test_tensorboard_is_the_default_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for there, names in ((object(), ("tensorboard",)), (None, ())):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: there)
        assert tracker_names(None) == names
        assert tracker_names(["wandb"]) == ["wandb"]
    assert capsys.readouterr().err.startswith("no tensorboard here (pip install tensorboard)")


def test_trackers_are_told_config_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Recorder:
        requires_logging_directory = True

        def __init__(self, name: str, logging_dir: str) -> None:
            told.append((name, logging_dir))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append(values)

        def log(self, values: dict[str, Any], step: int) -> None:
            told.append((values, step))

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    (reporter,) = trackers(["tensorboard"], tmp_path, {"loop": {"betas": [0.9, 0.99], "bf16": True}, "text": None})
    reporter({"step": 7, "loss": 0.5, "grad_norm": None})
    assert told == [
        ("tensorboard", str(tmp_path)),
        {"loop.betas": "[0.9, 0.99]", "loop.bf16": True, "text": "null"},
        ({"loss": 0.5}, 7),
    ]
    with pytest.raises(ValueError, match=r"there is no tracker 'wandb' here: it must be one of .*wandb"):
        trackers(["wandb"], tmp_path, {})


def test_tensorboard_itself(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (reporter,) = trackers(["tensorboard"], tmp_path, {"loop": {"betas": [0.9, 0.99]}})
    reporter({"step": 7, "loss": 0.5})
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
