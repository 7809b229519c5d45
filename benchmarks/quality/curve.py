"""The learning curve: the base's score at 64 px against the samples it has seen, from a training run's snapshots."""

from pathlib import Path

from safetensors.torch import load_file

from benchmarks.quality.drawing import Setting, draw, expected, verdicts
from benchmarks.quality.stored import load, store
from cascade.build import load_network
from pipelines.evaluation.detector import Detector

CATEGORIES = ("colours", "counting", "positional")


def measure(run: Path, setting: Setting) -> None:
    """Score every snapshot of a run that has no score yet.

    Args:
        run: A run folder of cascade.training.toybox, such as runs/toybox/base-64-from-0.
    """
    pipe, detector = setting.pipeline(), Detector.from_pretrained()
    prompts = setting.suite(*CATEGORIES)
    rows = (load("curve") or {"rows": []})["rows"]
    for snapshot in sorted(run.glob("snapshots/*.safetensors")):
        samples = int(snapshot.stem)
        if any(row["samples"] == samples for row in rows):
            continue
        load_network(pipe.cascade.stages[0], load_file(snapshot), str(snapshot), pipe.dtype)
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
        store("curve", {"rows": sorted(rows, key=lambda row: row["samples"])})
