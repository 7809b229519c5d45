"""The learning curve: the base's score at 64 px against the samples it had seen, from this repository's history.

Every version of the embedded default that was ever committed is drawn from anew and judged by the present detector, so
that all points are measured alike.
"""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.quality.drawing import Setting, draw, expected, verdicts
from benchmarks.quality.stored import store
from cascade.training.toybox import Shipped, stage_config
from pipelines.evaluation.detector import Detector
from weights.hub import EMBEDDED

CATEGORIES = ("colours", "counting", "positional")


def measure(setting: Setting) -> None:
    """Score every version whose base has the present network."""
    detector, prompts, rows = Detector.from_pretrained(), setting.suite(*CATEGORIES), []
    for folder in versions():
        shipped = Shipped(folder)
        if shipped.stage(stage_config("base-64").stage) is None:
            continue
        pipe = replace(setting, model=str(folder)).pipeline()
        samples = shipped.samples("base-64")
        for prompt, own in zip(prompts, draw(pipe, prompts, setting.images, stop_after=0), strict=True):
            found = verdicts(detector, own.cpu(), expected(prompt))
            rows.append(
                {
                    "samples": samples,
                    "category": prompt.category,
                    "right": [verdict.right for verdict in found],
                    "bound": [verdict.bound for verdict in found],
                }
            )
        print(f"{samples} samples done", flush=True)
        store("curve", {"rows": rows})


def versions() -> Iterator[Path]:
    """Folders with the embedded default as it was after each commit that changed its base, oldest first."""
    base = next(EMBEDDED.glob("stage-0-*")) / "model.safetensors"
    for commit in _git("log", "--reverse", "--diff-filter=AM", "--format=%h", "--", str(base)).decode().split():
        with TemporaryDirectory() as folder:
            archive = _git("archive", commit, ".")
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(folder, filter="data")
            yield Path(folder)


def _git(*arguments: str) -> bytes:
    """In the embedded default's folder."""
    return subprocess.run(["git", "-C", str(EMBEDDED), *arguments], check=True, capture_output=True).stdout
