"""A batch whose processes are killed at random, again and again, ends as one that was left alone.

The workers are processes of their own, killed by SIGKILL; they are forked off a server that has imported everything, so
that a restart takes a fraction of a second. Kills come after a random number of finished images, so they hit loading,
verifying, drawing and writing.
"""

import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import CAPTIONS
from PIL import Image

from pipelines.batch import read_run

PER_PROMPT, PROMPTS, KILLS = 4, 500, 50
IMAGES = PER_PROMPT * PROMPTS
FASTEST = {"num_inference_steps": 1, "guidance_scale": 1.0, "images_per_prompt": PER_PROMPT, "seed": 3}
PRELOADED = ["pipelines.batch.generation", "accelerate", "transformers.models.t5.modeling_t5"]


def work(model, out, rank, world, batch_size, log):
    """What a worker does: its share; the first seed of each group that it draws goes into the log."""
    import torch

    from cascade.chain import Cascade
    from pipelines.batch import generate_batch
    from pipelines.process import Process

    torch.set_num_threads(1)
    sample = Cascade.sample

    def logged(self, seeds, *sizes, first=0, **options):
        if first == 0:
            with open(log, "a") as file:
                file.write(f"{seeds[0]}\n")
        return sample(self, seeds, *sizes, first=first, **options)

    Cascade.sample = logged
    prompts = [CAPTIONS[i % len(CAPTIONS)] for i in range(PROMPTS)]
    process = Process(rank, world)
    generate_batch(model, prompts, out, batch_size=batch_size, process=process, progress=False, **FASTEST)


@pytest.fixture(scope="module")
def start(tmp_path_factory, text_encoder):
    """Start a worker; its process."""
    from conftest import tiny_stages

    from cascade.chain import Cascade
    from pipelines.text_to_image import Pipeline

    model = tmp_path_factory.mktemp("model") / "tiny"
    Pipeline(Cascade(tiny_stages()), text_encoder, licence="Apache-2.0").save_pretrained(model)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def run(out, rank=0, world=1, batch_size=8):
        process = context.Process(target=work, args=(model, out, rank, world, batch_size, f"{out}.log"))
        process.start()
        return process

    return run


@pytest.fixture(scope="module")
def untouched(start, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("untouched") / "run"
    worker = start(out)
    worker.join()
    assert worker.exitcode == 0
    return out


def lines(out):
    return [line for path in out.glob("manifest-*.jsonl") for line in path.read_bytes().split(b"\n") if line]


def contents(out):
    return {path.name: path.read_bytes() for path in (out / "images").iterdir()}


def torment(start, out, worlds, sizes, rng):
    """Start all processes, kill each after a random number of finished images, until there were KILLS kills; then let
    them finish. How many groups the kills can have hit: the one being drawn, and the one being written."""
    kills, rounds = 0, 0
    while kills < KILLS:
        world, size = worlds[rounds % len(worlds)], sizes[rounds % len(sizes)]
        rounds += 1
        workers = [start(out, rank, world, size) for rank in range(world)]
        begun = len(lines(out))
        for worker in rng.sample(workers, world):
            wanted = begun + rng.randrange(round(0.8 * IMAGES * world / KILLS))
            deadline = time.monotonic() + rng.uniform(0, 3)
            while worker.is_alive() and len(lines(out)) < wanted and time.monotonic() < deadline:
                time.sleep(0.002)
            if worker.is_alive():
                worker.kill()
                kills += 1
            worker.join()
            assert worker.exitcode in (0, -signal.SIGKILL)
    assert len(lines(out)) < IMAGES, "the kills came too late to matter"
    world, size = worlds[-1], sizes[-1]
    workers = [start(out, rank, world, size) for rank in range(world)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return 2 * kills


def pixels(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worlds", "sizes"), [([1], [8]), ([2], [8]), ([4], [8]), ([1, 4, 2], [8, 5])], ids=["1", "2", "4", "mixed"]
)
def test_kills_leave_no_trace(start, untouched, tmp_path, worlds, sizes):
    out = tmp_path / "run"
    in_flight = torment(start, out, worlds, sizes, random.Random(str(worlds)))
    run = read_run(out, verify=True)
    assert not run.missing
    assert {path.name for path in (out / "images").iterdir()} == contents(untouched).keys()
    assert {path.name for path in out.iterdir()} - {f"manifest-{rank}.jsonl" for rank in range(4)} == {
        "images",
        "prompts.jsonl",
        "run.json",
    }

    made = Counter((record["prompt"], record["image"]) for record in map(json.loads, lines(out)))
    assert len(made) == made.total() == IMAGES
    drawn = Counter(Path(f"{out}.log").read_text().splitlines())
    if len(sizes) == 1:
        assert drawn.total() - len(drawn) <= in_flight
        assert contents(out) == contents(untouched)
    else:
        close = [
            np.abs(pixels(out / "images" / name) - pixels(untouched / "images" / name)) <= 1 for name in contents(out)
        ]
        assert np.mean(close) >= 0.999
