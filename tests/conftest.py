"""Common ground of all tests: no network, few threads, fixed seeds."""

import os

# Before huggingface_hub is imported, which reads it once; subprocesses inherit it.
# A test of what happens online patches `huggingface_hub.constants.HF_HUB_OFFLINE`.
os.environ["HF_HUB_OFFLINE"] = "1"

import random
import threading

import hypothesis
import numpy as np
import pytest
import torch

# Tiny networks lose more to starting threads than they gain from many. The variable is for subprocesses.
THREADS = min(4, torch.get_num_threads())
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

# A red test is red again on the next run and on the next machine.
hypothesis.settings.register_profile("cascade", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("cascade")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


CAPTIONS = [
    f"a {c} {n} on a {d} {m}"
    for c in ("red", "blue", "green")
    for d in ("red", "blue")
    for n in ("car", "house", "ball")
    for m in ("car", "ball")
]


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory):
    """A tiny real T5 encoder (width 16) with its SentencePiece model."""
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    from cascade.training.tokenizer import train_tokenizer
    from conditioning.text import TextEncoder

    tokenizer = train_tokenizer(CAPTIONS, tmp_path_factory.mktemp("tokenizer"), vocab_size=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=tokenizer.size, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        return TextEncoder(T5EncoderModel(config), tokenizer, max_length=64)


def tiny_stages():
    """8 -> 16 px, every parameter random: fresh networks put out zeros, which would hide what they are told."""
    from cascade.build import build_stage
    from cascade.networks.efficient_unet import EfficientUNetConfig
    from cascade.networks.unet import UNetConfig
    from cascade.stage import Augmentation, Sampling, StageConfig

    base = StageConfig(
        name="base-8",
        resolution=(8, 8),
        network=UNetConfig(32, (1, 2), (1, 1), (1,), embedding_width=32, head_channels=32, text_width=16),
        sampling=Sampling(steps=4, guidance_scale=3.0),
    )
    enlarge = StageConfig(
        name="sr-16",
        resolution=(16, 16),
        low_resolution=(8, 8),
        network=EfficientUNetConfig(32, (1, 1), (1, 1), embedding_width=32, heads=2, text_width=16),
        augmentation=Augmentation(max_level=0.5),
        sampling=Sampling(steps=3, aug_level=0.1),
    )
    stages = [build_stage(base), build_stage(enlarge)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for stage in stages:
            for parameter in stage.parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
                parameter.data.normal_(0, 1.2 * fan_in**-0.5)
    return stages


@pytest.fixture
def pipe(text_encoder):
    """A tiny pipeline, 8 -> 16 px."""
    from cascade.chain import Cascade
    from pipelines.text_to_image import Pipeline

    pipe = Pipeline(Cascade(tiny_stages()), text_encoder, licence="Apache-2.0")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def batch(pipe, tmp_path):
    """Draw three images of each prompt into a folder of tmp_path."""
    from batch_runs import PROMPTS

    from pipelines.batch import generate_batch

    def run(folder="run", prompts=PROMPTS, **options):
        return generate_batch(
            pipe, prompts, tmp_path / folder, **{"images_per_prompt": 3, "seed": 5, "progress": False} | options
        )

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two complete runs of the same 5 prompts, of 3 and of 4 images each."""
    from rating_runs import make_run

    from pipelines.batch.run import read_run

    folder = tmp_path_factory.mktemp("runs")
    return read_run(make_run(folder / "a", seed=10)), read_run(make_run(folder / "b", images=4, seed=20))


@pytest.fixture(scope="module")
def study(runs):
    """What raters compare: 5 prompts and 2 control items each, 3 images a side."""
    from pipelines.evaluation.rating.study import Study

    return Study(runs, ("ours", "theirs"), controls=0.4)


@pytest.fixture(scope="module")
def serve(study, tmp_path_factory):
    """Start a rating server in a thread; all are stopped in the end."""
    from pipelines.evaluation.rating.access import Access
    from pipelines.evaluation.rating.answers import Answers
    from pipelines.evaluation.rating.server import RatingServer

    running = []

    def run(invited=None, host="127.0.0.1", url=None):
        answers = Answers(tmp_path_factory.mktemp("answers") / "answers.sqlite", study.about, study.prompts)
        server = RatingServer(study, answers, Access(answers.key, invited), host, 0, url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield run
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
        server.answers.close()


@pytest.fixture(scope="module")
def server(serve):
    return serve()


@pytest.fixture
def client(server):
    from rating_runs import Client

    client = Client(server.server_address[1])
    yield client
    client.connection.close()


@pytest.fixture
def ada(client):
    assert client.enter(name="Ada") == (200, {"rater": "Ada"})
    return client
