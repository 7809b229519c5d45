"""What `cascade batch` gains over one process a prompt, and what it loses against sampling alone.

    python benchmarks/batch.py [--prompts 16] [--batch-size 8] [--runs 3] [--device cpu]

Seconds per image, on the toybox suite's first prompts, three ways, alternately in each run:

    one process a prompt    `cascade generate PROMPT` for each, from the call to the written PNG
    cascade batch           one call for all, from the call to the last PNG: start, weights, text, sampling, files
    sampling alone          `Pipeline` in batches of the same size, in a process that has loaded everything

The goals are batch at 1.5 times the rate of the first, and at 0.9 of that of the last. "batch, started" leaves out what
a batch spends once, before its first image, whatever its length; it is `generate_batch` in a process that has loaded
everything, against the same batches without files. What is spent once, and from how many images on the second goal is
therefore reached, is printed below the table.
"""

import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from environment import ROOT, environment

from cascade import Pipeline
from pipelines.batch import generate_batch
from pipelines.evaluation.public_suites import named_suite

GOAL = 0.9  # of the rate of sampling alone
ALONE, WHOLE, STARTED, SAMPLING = "one process a prompt", "cascade batch", "batch, started", "sampling alone"


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cascade(*arguments: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")


def main(
    prompts: int = 16,
    batch_size: int = 8,
    runs: int = 3,
    steps: tuple[int, ...] = (),
    model: str | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    one_by_one_too: bool = True,
) -> None:
    """Print the table.

    Args:
        prompts: How many, one image each.
        batch_size: Images drawn at a time.
        runs: Repetitions, of which the median is shown.
        steps: Sampling steps, one for all stages or one per stage; the model's own if left out.
        model: A folder; the embedded default if left out.
        device: cpu or cuda.
        one_by_one_too: Measure one process a prompt, which takes longest.
    """
    warnings.simplefilter("ignore", UserWarning)  # words the embedded model was not trained on do not matter here
    records = named_suite("toybox").records[:prompts]
    texts = [record.prompt for record in records]
    options = ["--device", device, *(["--model", model] if model else [])]
    options += ["--steps", *map(str, steps)] if steps else []
    own_steps = None if not steps else steps[0] if len(steps) == 1 else list(steps)
    pipe = Pipeline.from_pretrained(model).to(device)
    pipe.set_progress_bar_config(disable=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "prompts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")

        def one_by_one(run: int) -> None:
            for text in texts:
                cascade("generate", text, "-o", str(folder / "one.png"), "--seed", "0", *options)

        def whole(run: int) -> None:
            sizes = ["--batch-size", str(batch_size)]
            cascade("batch", str(folder / "prompts.txt"), "-o", str(folder / f"batch-{run}"), *sizes, *options)

        def started(run: int) -> None:
            out = folder / f"started-{run}"
            generate_batch(pipe, records, out, batch_size=batch_size, num_inference_steps=own_steps, progress=False)

        def sampling(run: int) -> None:
            pipe(texts, seed=0, max_batch_size=batch_size, num_inference_steps=own_steps, output_type="pt")

        ways: dict[str, Callable[[int], None]] = {ALONE: one_by_one} if one_by_one_too else {}
        ways |= {WHOLE: whole, STARTED: started, SAMPLING: sampling}
        pipe(texts[:1], seed=0, num_inference_steps=1)  # what torch sets up at its first call
        seconds = {name: [] for name in ways}
        for run in range(runs):
            for name, way in ways.items():
                seconds[name].append(timed(lambda way=way, run=run: way(run)) / prompts)

    print(
        f"{environment()}\n{prompts} prompts, batches of {batch_size} on {device}, median of {runs} (least to most)\n"
    )
    print("| way | seconds/image | batch's rate is |\n|---|---:|---:|")
    against = {ALONE: "times that", SAMPLING: "of that"}
    for name, each in seconds.items():
        spread = f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"
        ratio = ""
        if name in against:
            first, second = (
                statistics.median(a / b for a, b in zip(each, seconds[other], strict=True))
                for other in (WHOLE, STARTED)
            )
            ratio = f"{first:.2f} {against[name]}; started {second:.2f}"
        print(f"| {name} | {spread} | {ratio} |")
    batch, running, alone = (statistics.median(seconds[name]) for name in (WHOLE, STARTED, SAMPLING))
    once = prompts * (batch - running)
    enough = f"{math.ceil(once / (alone / GOAL - running))} images" if alone / GOAL > running else "no number of images"
    print(f"\nA batch spends {once:.1f} s once: it has {GOAL} of the rate of sampling alone from {enough} on.")


if __name__ == "__main__":
    tyro.cli(main)
