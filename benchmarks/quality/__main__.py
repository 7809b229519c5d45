"""python -m benchmarks.quality COMMAND: see the package's docstring."""

from pathlib import Path

import tyro

from benchmarks.quality import (
    binding,
    copies,
    curve,
    detector,
    gallery,
    guidance,
    judge,
    label,
    lessons,
    report,
    suite,
    super_resolution,
    training,
)
from benchmarks.quality.drawing import Setting

Options = tyro.conf.OmitArgPrefixes[Setting]


def measure_suite(setting: Options) -> None:
    suite.measure(setting)


def measure_super_resolution(setting: Options) -> None:
    super_resolution.measure(setting)


def measure_guidance(setting: Options) -> None:
    guidance.measure(setting)


def measure_curve(setting: Options) -> None:
    curve.measure(setting)


def measure_copies(setting: Options) -> None:
    copies.measure(setting)


def measure_binding(setting: Options) -> None:
    binding.measure(setting)


def draw_to_label(setting: Options) -> None:
    label.prepare(setting)


def teach(labels: tyro.conf.Positional[Path]) -> None:
    lessons.teach(labels)


def draw_gallery(setting: Options) -> None:
    gallery.draw(setting)


if __name__ == "__main__":
    commands = {
        "gallery": draw_gallery,
        "suite": measure_suite,
        "super-resolution": measure_super_resolution,
        "guidance": measure_guidance,
        "curve": measure_curve,
        "copies": measure_copies,
        "binding": measure_binding,
        "detector": detector.measure,
        "label": draw_to_label,
        "judge": judge.measure,
        "teach": teach,
        "training": training.measure,
        "report": report.write,
    }
    tyro.extras.subcommand_cli_from_dict(commands)
