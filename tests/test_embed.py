"""`cascade embed`: the command, processes that share the work, kills at any time."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import CAPTIONS
from image_folders import encoded, picture

from conditioning.embedding_cache import EmbeddingCache, EncoderIdentity, read_header
from conditioning.text import TextEncoder
from pipelines import cli
from pipelines.embed import build_cache
from pipelines.process import Process

MANY = [f"{caption}, {number} of {len(CAPTIONS)}" for caption in CAPTIONS for number in range(20)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def here(text_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text_encoder.save_pretrained("t5")
    write_data(CAPTIONS)
    return tmp_path


def write_data(captions, folder="data"):
    Path(folder).mkdir(exist_ok=True)
    for i, caption in enumerate(captions):
        Path(folder, f"{i:04d}.png").write_bytes(encoded(picture(0, (4, 4))))
        Path(folder, f"{i:04d}.txt").write_text(caption)


def command(*arguments):
    return cli.main(["embed", "data", "--text-encoder", "t5", "-o", "cache", *arguments])


def test_the_command(here, capsys):
    assert command("--max-length", "20") == 0
    assert capsys.readouterr().out == "cache: 36 captions embedded, 0 were there\n"
    assert command("--max-length", "20") == 0
    assert capsys.readouterr().out == "cache: 0 captions embedded, 36 were there\n"
    identity, _ = read_header(Path("cache"))
    assert (identity.name, identity.revision, identity.max_length, identity.padding) == ("t5", None, 20, "trimmed")
    encoder = TextEncoder.from_pretrained("t5", max_length=20)
    cache = EmbeddingCache("cache", EncoderIdentity.of(encoder, "t5"))
    assert torch.equal(cache(CAPTIONS).mask, encoder(CAPTIONS).mask)


def test_what_is_new_is_added(here, capsys):
    assert command() == 0
    write_data([*CAPTIONS, "a purple ball", "a car"])
    capsys.readouterr()
    assert command() == 0
    assert capsys.readouterr().out == "cache: 2 captions embedded, 36 were there\n"
    assert all(caption in EmbeddingCache("cache") for caption in (*CAPTIONS, "a purple ball"))


def test_captions_that_are_cut_or_missing_are_counted(here, capsys):
    Path("data/0003.txt").unlink()
    Path("data/0004.txt").write_text(" ")
    assert command("--max-length", "4") == 0
    out = capsys.readouterr().out
    assert "cut to 4 tokens, which --max-length sets: 34 captions\n" in out
    assert "without a caption: 2 items, the first 0003.png: no caption" in out
    assert command("--max-length", "4", "--max-skipped", "0.01") == 2
    error = capsys.readouterr().err
    assert "2 of 36 items have no caption, and --max-skipped is 0.01" in error.splitlines()[-1]
    assert "\n  0004.png: the caption is empty\n" in error


def test_a_cascade_knows_its_length(pipe, here, capsys):
    pipe.save_pretrained("cascade")
    arguments = ["embed", "data", "--text-encoder", "cascade", "-o", "cache"]
    assert cli.main(arguments) == 0
    assert read_header(Path("cache"))[0].max_length == 64
    assert EncoderIdentity.of(pipe.text_encoder, "x").fingerprint == read_header(Path("cache"))[0].fingerprint
    capsys.readouterr()
    assert cli.main([*arguments, "--padding", "kept"]) == 2
    assert "they differ in padding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text-encoder", "nowhere/at/all"], "no folder 'nowhere/at/all'"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--split", "test"], "no split 'test'"),
        (["--device", "cuda"], "finds no GPU"),
        (["--max-length", "1"], "max_length is 1"),
        (["-o", "data/0000.txt"], "0000.txt"),
    ],
)
def test_bad_input_is_one_line(here, capsys, arguments, message):
    assert command(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cascade: error: ")
    assert message in error


def test_an_encoder_that_overflows(text_encoder, here):
    encoder = TextEncoder.from_pretrained("t5")
    encoder.model.shared.weight.fill_(float("inf"))
    identity = EncoderIdentity.of(encoder, "broken")
    with pytest.raises(ValueError, match=r"not finite in torch.float32; choose --dtype"):
        build_cache(_source(CAPTIONS), encoder, identity, here / "cache")
    assert not list((here / "cache").glob("*.safetensors"))


def test_ranks_make_the_same(text_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.embed.ITEMS_PER_SHARD", 64)
    identity = EncoderIdentity.of(text_encoder, "tiny")
    alone = build_cache(_source(MANY), text_encoder, identity, tmp_path / "alone")
    both = [
        build_cache(_source(MANY), text_encoder, identity, tmp_path / "both", Process(rank, 2)) for rank in range(2)
    ]
    assert alone.made == sum(part.made for part in both) == len(MANY)
    assert min(part.made for part in both) > 0.3 * len(MANY)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "alone")) == 1 + 12


def _source(captions):
    from test_embedding_cache import Captions

    return Captions(captions)


def work(encoder, out, rank, world):
    import pipelines.embed

    torch.set_num_threads(1)
    pipelines.embed.ITEMS_PER_SHARD = 8
    found = TextEncoder.from_pretrained(encoder, max_length=64)
    build_cache(_source(MANY), found, EncoderIdentity.of(found, "t5"), out, Process(rank, world), batch_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_kills_leave_no_trace(text_encoder, tmp_path, world):
    text_encoder.save_pretrained(tmp_path / "t5")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.embed", "transformers.models.t5.modeling_t5", "conditioning.text"])

    def start(out, rank, world):
        process = context.Process(target=work, args=(tmp_path / "t5", out, rank, world))
        process.start()
        return process

    untouched, out = tmp_path / "untouched", tmp_path / "cache"
    start(untouched, 0, 1).join()
    assert len(contents(untouched)) == 91
    rng, kills, rounds = random.Random(world), 0, 0
    while kills < 20:
        rounds += 1
        assert rounds < 200
        workers = [start(out, rank, world) for rank in range(world)]
        for worker in workers:
            begun = len(list(out.glob("0*")))
            wanted = begun + rng.randrange(1, 6)
            if rounds % 4:
                while worker.is_alive() and len(list(out.glob("0*"))) < wanted:
                    time.sleep(0.0005)
                time.sleep(rng.random() * 0.005)
            else:
                time.sleep(rng.random() * 0.3)
            if worker.is_alive():
                worker.kill()
                kills += 1
            worker.join()
            assert worker.exitcode in (0, -signal.SIGKILL)
            if out.is_dir():  # whatever is under its own name is whole
                made = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
                assert made.items() <= contents(untouched).items()
        if len(list(out.glob("0*"))) == 90:
            shutil.rmtree(out)
    for worker in [start(out, rank, world) for rank in range(world)]:
        worker.join()
        assert worker.exitcode == 0
    assert contents(out) == contents(untouched)
    assert json.loads((out / "cache.json").read_text())["shards"] == 90
