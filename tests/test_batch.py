"""Batches: the images are the pipeline's, whatever batch, process or resumption they come from."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.batch import generate_batch, read_run
from pipelines.batch import writer as batch_writer
from pipelines.batch.run import Lines, sha256
from pipelines.batch.share import find_share
from pipelines.metadata import read_png
from pipelines.process import Process
from pipelines.prompts import PromptFile, PromptRecord, read_prompts

PROMPTS = ["a red car", "a blue ball on a red house", "a green house", "a red ball", "a blue car on a red ball"]


@pytest.fixture
def batch(pipe, tmp_path):
    def run(folder="run", prompts=PROMPTS, **options):
        return generate_batch(
            pipe, prompts, tmp_path / folder, **{"images_per_prompt": 3, "seed": 5, "progress": False} | options
        )

    return run


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def manifest_lines(folder):
    return [json.loads(line) for path in folder.glob("manifest-*.jsonl") for line in path.read_text().splitlines()]


def closeness(one, other):
    """The share of pixels within 1/255 of each other."""
    pairs = [(pixels(one / "images" / name), pixels(other / "images" / name)) for name in sorted(contents(one))]
    return np.mean([np.abs(a.astype(int) - b) <= 1 for a, b in pairs])


def test_the_images_are_the_pipelines(pipe, batch, tmp_path):
    result = batch(batch_size=4)
    assert (result.made, result.kept, result.failed) == (15, 0, 0)
    out = pipe(PROMPTS, num_images_per_prompt=3, seed=5)
    for j, (image, metadata) in enumerate(zip(out.images, out.metadata, strict=True)):
        path = tmp_path / "run" / "images" / f"{j // 3:05d}-{j % 3}.png"
        assert np.abs(pixels(path).astype(int) - np.array(image)).max() <= 1
        assert read_png(path) == metadata
    assert pipe.text_encoder is not None


def test_a_single_batch_of_everything_is_bit_for_bit_the_pipelines(pipe, batch, tmp_path):
    batch(batch_size=15, negative_prompt="a blue house", num_inference_steps=[3, 2], guidance_scale=2.0)
    out = pipe(PROMPTS, "a blue house", num_images_per_prompt=3, seed=5, num_inference_steps=[3, 2], guidance_scale=2.0)
    drawn = [pixels(path) for path in sorted((tmp_path / "run" / "images").iterdir())]
    assert (np.array(drawn) == np.array([np.array(image) for image in out.images])).all()
    assert read_png(tmp_path / "run" / "images" / "00000-0.png")["negative_prompt"] == "a blue house"


def test_the_run_folder_says_all(batch, tmp_path):
    records = [PromptRecord("a red car", "toys", {"expected": {"count": 1}}), PromptRecord("a blue ball")]
    batch(prompts=records)
    run = read_run(tmp_path / "run", verify=True)
    assert run.prompts == records
    assert (run.images_per_prompt, run.settings["seed"], run.missing) == (3, 5, [])
    assert run.settings["stages"]["base-8"]["steps"] == 4
    assert [[path.name for path in paths] for _, _, paths in run][1] == [f"00001-{k}.png" for k in range(3)]
    for line in manifest_lines(tmp_path / "run"):
        path = run.path(line["prompt"], line["image"])
        assert line["file"] == f"images/{path.name}"
        assert line["sha256"] == sha256(path)
        assert line["seed"] == read_png(path)["seed"] == run.seed(line["prompt"], line["image"])
    whole = json.loads((tmp_path / "run" / "run.json").read_text())
    assert whole.keys() == {"format", "settings", "model", "loaded_with", "provenance"}
    assert not (tmp_path / "run" / "errors.jsonl").exists()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_batch_size_does_not_matter(batch, tmp_path, size):
    batch("whole", batch_size=15)
    batch(batch_size=size)
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "whole").keys()
    assert closeness(tmp_path / "run", tmp_path / "whole") >= 0.999


def test_processes_share_the_work(batch, tmp_path):
    batch("whole", batch_size=2)
    for rank in range(3):
        result = batch(batch_size=2, process=Process(rank, 3))
        assert result.made == [6, 5, 4][rank]
        assert result.failed == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert len(manifest_lines(tmp_path / "run")) == 15
    assert {path.name for path in (tmp_path / "run").glob("manifest-*")} == {f"manifest-{r}.jsonl" for r in range(3)}


def test_it_goes_on_with_another_number_of_processes(batch, tmp_path):
    batch("whole", batch_size=2)
    batch(batch_size=2, process=Process(1, 3))
    result = batch(batch_size=2)
    assert (result.made, result.kept) == (10, 5)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def damage(folder):
    """Delete, corrupt, truncate, and forget an image each; leave what kills leave. The names of those to be made."""
    images = folder / "images"
    (images / "00000-1.png").unlink()
    (images / "00001-0.png").write_bytes(b"no image")
    (images / "00003-2.png").write_bytes((images / "00003-2.png").read_bytes()[:-1])
    manifest = folder / "manifest-0.jsonl"
    lines = [line for line in manifest.read_bytes().splitlines(True) if b"00002-2" not in line]
    manifest.write_bytes(b"".join(lines) + b'{"prompt": 4, "ima')
    for half_written in (
        images / ".00000-1.png.123.saving",
        folder / ".run.json.1.saving",
        folder / ".prompts.jsonl.2.saving",
    ):
        half_written.write_bytes(b"half")
    return {"00000-1.png", "00001-0.png", "00003-2.png", "00002-2.png"}


def test_a_second_run_makes_exactly_what_is_missing(batch, tmp_path):
    batch(batch_size=4)
    folder = tmp_path / "run"
    before = contents(folder)
    gone = damage(folder)
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "images").glob("0*") if path.name not in gone}
    known = len(manifest_lines_readable(folder))
    result = batch(batch_size=4)
    assert (result.made, result.kept, result.failed) == (4, 11, 0)
    assert contents(folder) == before
    assert not [*folder.rglob("*.saving")]
    assert all((folder / "images" / name).stat().st_mtime_ns == time for name, time in written.items())
    assert {Path(line["file"]).name for line in manifest_lines_readable(folder)[known:]} == gone
    assert batch(batch_size=4).made == 0
    assert read_run(folder, verify=True).missing == []


def manifest_lines_readable(folder):
    found = []
    for line in (folder / "manifest-0.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            assert line == '{"prompt": 4, "ima'
    return found


def test_only_groups_with_something_missing_are_drawn(pipe, batch, tmp_path, monkeypatch):
    batch(batch_size=4)
    for name in ("00000-1.png", "00004-2.png"):
        (tmp_path / "run" / "images" / name).unlink()
    calls = []
    draw = type(pipe)._draw
    monkeypatch.setattr(type(pipe), "_draw", lambda self, seeds, *rest: calls.append(seeds) or draw(self, seeds, *rest))
    assert batch(batch_size=4).made == 2
    assert calls == [[5, 6, 7, 8], [17, 18, 19]]


def test_an_incomplete_run_is_refused_by_the_reader(batch, tmp_path):
    batch()
    (tmp_path / "run" / "images" / "00003-1.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 15 images, the first 00003-1\.png; run the same"):
        read_run(tmp_path / "run")
    run = read_run(tmp_path / "run", complete=False)
    assert run.missing == [10]
    assert [len(paths) for _, _, paths in run] == [3, 3, 3, 2, 3]
    (tmp_path / "run" / "images" / "00002-0.png").write_bytes(b"")
    assert read_run(tmp_path / "run", complete=False, verify=True).missing == [6, 10]
    (tmp_path / "run" / "prompts.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"prompts\.jsonl is missing or was changed"):
        read_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no run\.json in .*; expected a folder that `cascade batch` wrote"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 6}, "seed is 5 there and 6 here"),
        ({"images_per_prompt": 2}, "images_per_prompt is 3 there and 2 here"),
        ({"prompts": [*PROMPTS, "a red car"]}, "prompts.count is 5 there and 6 here; prompts.sha256 is"),
        ({"num_inference_steps": [5, 3]}, r"stages\.base-8\.steps is 4 there and 5 here\. Choose another folder"),
        ({"thresholding": "static"}, r"stages\.base-8\.thresholding\.kind is 'dynamic' there and 'static' here"),
        ({"negative_prompt": "a ball"}, "negative_prompt is None there and 'a ball' here"),
        ({"stop_after": 0}, "stop_after is 1 there and 0 here"),
    ],
)
def test_other_settings_are_refused(batch, tmp_path, options, message):
    batch()
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        batch(**options)
    assert contents(tmp_path / "run") == before


def test_other_weights_are_refused(pipe, batch):
    batch()
    with torch.no_grad():
        next(pipe.cascade.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match=r"weights is 'sha256:.*' there and 'sha256:.*' here"):
        batch()


def test_images_of_unknown_settings_are_refused(batch, tmp_path):
    batch()
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json says how they were made; choose another folder"):
        batch()
    (tmp_path / "run" / "run.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="has format 2 and this version reads 1; update"):
        batch()
    (tmp_path / "run" / "run.json").write_text("[")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        batch()


def test_two_at_once_on_one_folder_are_refused(batch, tmp_path):
    batch()
    lines = Lines(tmp_path / "run" / "manifest-0.jsonl", exclusive=True)
    with pytest.raises(ValueError, match=r"another process is writing .*manifest-0\.jsonl; wait for it"):
        batch()
    lines.close()
    assert batch().kept == 15


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": []}, ValueError, "empty list"),
        ({"prompts": "a red car"}, TypeError, "expected a list of them, or read_prompts"),
        ({"prompts": ["a red car", " "]}, ValueError, r"prompts\[1\]: the prompt is empty"),
        ({"prompts": ["a red car", 3]}, TypeError, r"prompts\[1\]: the prompt is 3"),
        ({"images_per_prompt": 0}, ValueError, "images_per_prompt is 0"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**32 - 3}, ValueError, "seed is 4294967293; expected from 0 to"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps is 0"),
        ({"height": 17}, ValueError, "try"),
        ({"stop_after": 2}, ValueError, "stop_after is 2"),
        ({"negative_prompt": ""}, ValueError, "negative_prompt is ''"),
    ],
)
def test_bad_input_is_refused_before_any_work(batch, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        batch(**options)
    assert not (tmp_path / "run").exists()


def test_a_cascade_without_an_encoder_is_refused(pipe, batch):
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="no text encoder"):
        batch()


def limit_memory(monkeypatch, pipe, most, error):
    """Drawing more than `most` images at a time fails. The sizes that were tried."""
    tried = []
    draw = type(pipe)._draw

    def limited(self, seeds, *rest):
        tried.append(len(seeds))
        if len(seeds) > most:
            raise error
        return draw(self, seeds, *rest)

    monkeypatch.setattr(type(pipe), "_draw", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    ],
)
def test_batches_shrink_where_memory_runs_out_and_stay_small(pipe, batch, tmp_path, monkeypatch, error):
    batch("whole", batch_size=8)
    tried = limit_memory(monkeypatch, pipe, 3, error)
    assert batch(batch_size=8).made == 15
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 1]
    assert closeness(tmp_path / "run", tmp_path / "whole") >= 0.999


def test_no_memory_for_a_single_image(pipe, batch, tmp_path, monkeypatch):
    batch("whole", batch_size=4)
    with monkeypatch.context() as patch:
        tried = limit_memory(patch, pipe, 0, MemoryError())
        with pytest.raises(MemoryError, match="not enough memory for a single image; choose a smaller height"):
            batch(batch_size=4)
        assert tried == [4, 2, 1]
        assert pipe.text_encoder is not None
    assert batch(batch_size=4).made == 15
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_other_errors_while_drawing_are_not_swallowed(pipe, batch, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        limit_memory(patch, pipe, 0, RuntimeError("shapes differ"))
        with pytest.raises(RuntimeError, match="shapes differ"):
            batch()


def test_an_interruption_keeps_what_was_drawn(pipe, batch, tmp_path, monkeypatch):
    batch("whole", batch_size=4)
    calls = []
    draw = type(pipe)._draw

    def interrupted(self, seeds, *rest):
        calls.append(seeds)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, seeds, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "_draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batch(batch_size=4)
    result = batch(batch_size=4)
    assert (result.made, result.kept) == (7, 8)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def errors(folder):
    return [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]


def test_a_prompt_that_the_encoder_refuses(pipe, batch, tmp_path, monkeypatch, capsys):
    batch("whole", batch_size=4)
    encode = type(pipe.text_encoder).__call__

    def refusing(self, prompts):
        if any("green" in prompt for prompt in prompts):
            raise ValueError("the prompt is too long")
        return encode(self, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.text_encoder), "__call__", refusing)
        for _ in range(2):
            result = batch(batch_size=4)
            assert result.failed == 3
    assert errors(tmp_path / "run") == [{"prompt": "a green house", "error": "the prompt is too long"}]
    assert "cascade: prompt a green house: the prompt is too long" in capsys.readouterr().err
    assert read_run(tmp_path / "run", complete=False).missing == [6, 7, 8]
    result = batch(batch_size=4)
    assert (result.made, result.kept, result.failed) == (3, 12, 0)
    assert closeness(tmp_path / "run", tmp_path / "whole") >= 0.999


def test_unreadable_lines_are_reported_by_one_process(batch, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a red car"}\nred\n{"prompt": "a blue ball"}\n')
    found = read_prompts(path)
    assert isinstance(found, PromptFile)
    results = [batch(prompts=found, batch_size=3, process=Process(rank, 2)) for rank in range(2)]
    assert [(one.made, one.failed) for one in results] == [(3, 3), (3, 0)]
    (only,) = errors(tmp_path / "run")
    assert only["line"] == 2
    assert read_run(tmp_path / "run").prompts == list(found.records)


def full_disk(monkeypatch, names):
    """Writing images of these names fails."""
    save = batch_writer.save_png

    def failing(image, path, metadata):
        if any(name in path.name for name in names):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(image, path, metadata)

    monkeypatch.setattr(batch_writer, "save_png", failing)


def test_an_image_that_cannot_be_written_is_reported_and_the_rest_finishes(batch, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        full_disk(patch, ["00001-"])
        result = batch(batch_size=4)
    assert (result.made, result.failed) == (12, 3)
    assert [(one["prompt"], one["image"]) for one in errors(tmp_path / "run")] == [(1, 0), (1, 1), (1, 2)]
    assert "cascade: prompt 1 image 0: [Errno 28] No space left on device" in capsys.readouterr().err
    result = batch(batch_size=4)
    assert (result.made, result.kept, result.failed) == (3, 12, 0)


def test_a_disk_that_stays_full_ends_the_run(batch, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, ["00"])
        with pytest.raises(OSError, match=r"nothing can be written to .*; free space or correct its permissions"):
            batch(batch_size=2)
    assert len(errors(tmp_path / "run")) == 6
    assert batch(batch_size=2).made == 15


def test_a_manifest_line_cut_by_a_full_disk(tmp_path):
    lines = Lines(tmp_path / "x.jsonl")
    lines.append({"a": 1})
    with open(tmp_path / "x.jsonl", "ab") as file:
        file.write(b'{"b"')
    lines.close()
    lines = Lines(tmp_path / "x.jsonl")
    lines.append({"c": 3})
    lines.append({"d": 4})
    lines.close()
    assert (tmp_path / "x.jsonl").read_text() == '{"a": 1}\n{"b"\n{"c": 3}\n{"d": 4}\n'


def test_an_unwritable_folder(batch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file; choose a folder"):
        batch("file")
    with pytest.raises(OSError, match="file"):
        batch("file/inside")


def test_names_never_come_from_prompts(batch, tmp_path):
    prompts = ["../../a red car", "/etc/passwd", "a\\b:c*?.png", "." * 300, "-rf", "line\nbreak \u2028 \u202e end"]
    with pytest.warns(UserWarning, match="1 of 6 prompts are longer"):
        assert batch(prompts=prompts, images_per_prompt=1).made == 6
    assert {path.name for path in (tmp_path / "run" / "images").iterdir()} == {f"{i:05d}-0.png" for i in range(6)}
    assert [record.prompt for record in read_run(tmp_path / "run").prompts] == prompts
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_prompts_that_are_too_long_are_warned_about_once(batch):
    prompts = [f"a red car on a {colour} ball{' and a green house' * 20}" for colour in ("red", "blue", "green")]
    prompts.append("a red car")
    with pytest.warns(
        UserWarning, match="^3 of 4 prompts are longer than the 64 tokens .* the first is .*a red ball"
    ) as caught:
        batch(prompts=prompts, images_per_prompt=1, batch_size=1)
    assert len(caught) == 1


def test_words_the_model_does_not_know_are_warned_about_once(pipe, batch):
    pipe.vocabulary = ["a", "red", "car", "ball", "blue"]
    with pytest.warns(UserWarning, match="3 of 5 prompts .*: 'on', 'house', 'green'$") as caught:
        batch()
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Process(3, 8, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Process(1, 2, 0)),
    ],
)
def test_what_the_launcher_says(environment, expected):
    assert Process.from_environment(environment) == expected


def test_a_rank_beyond_the_processes():
    with pytest.raises(ValueError, match="rank 2 of 2 processes"):
        Process(2, 2)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_image_is_one_processs(tmp_path, world):
    (tmp_path / "images").mkdir()
    shares = [find_share(tmp_path, 23, 2, 3, Process(rank, world)) for rank in range(world)]
    assert sorted(j for share in shares for j in share.missing) == list(range(23))
    assert sorted(j for share in shares for group in share.groups for j in group) == list(range(23))


def test_the_package_offers_what_it_says():
    import pipelines.batch

    assert all(hasattr(pipelines.batch, name) for name in pipelines.batch.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        pipelines.batch.nothing  # noqa: B018
