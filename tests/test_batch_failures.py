"""Batches in which something goes wrong: it is reported, the rest finishes, and the next run makes what is missing."""

import errno
from contextlib import contextmanager

import pytest
import torch
from batch_runs import PROMPTS, closeness, contents, errors, sampling_watched

from pipelines.batch import read_run
from pipelines.batch import writer as batch_writer
from pipelines.process import Process
from pipelines.prompts import PromptFile, read_prompts


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
        ({"negative_prompt": 3}, TypeError, "negative_prompt is 3"),
        ({"negative_prompt": ["a car"]}, TypeError, r"negative_prompt is \['a car'\]; expected a string"),
        ({"stepz": 3}, TypeError, "a batch takes no stepz; its options are aug_level, guidance_scale, height,"),
        ({"start_stage": 1, "image": torch.zeros(1, 3, 8, 8)}, TypeError, "a batch takes no image"),
        ({"strength": 0.5}, TypeError, "a batch takes no strength"),
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


@contextmanager
def limited_memory(monkeypatch, pipe, most, error, stage=None):
    """Drawing more than `most` images at a time fails, by one stage or by all. (stage, images) of all attempts."""
    tried = []

    def seen(number, seeds):
        tried.append((number, len(seeds)))
        if len(seeds) > most and stage in (None, number):
            raise error

    with sampling_watched(monkeypatch, pipe, seen):
        yield tried


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
    with limited_memory(monkeypatch, pipe, 3, error) as tried:
        assert batch(batch_size=8).made == 15
    sizes = [8, 4, *[2] * 8, *[2, 2, 2, 1] * 2]  # 8 images by both stages, then 7
    assert [size for _, size in tried] == sizes
    assert closeness(tmp_path / "run", tmp_path / "whole") >= 0.999


def test_a_stage_that_runs_out_of_memory_keeps_what_the_one_before_it_drew(pipe, batch, monkeypatch):
    with limited_memory(monkeypatch, pipe, 4, MemoryError(), stage=1) as tried:
        assert batch(batch_size=15).made == 15
    assert tried == [(0, 15), (1, 15), (1, 7), (1, 3), (1, 3), (1, 3), (1, 3), (1, 3)]


def test_a_call_of_the_pipeline_shrinks_its_batches_too(pipe, monkeypatch):
    wanted = pipe(PROMPTS, seed=0, output_type="pt").images
    with limited_memory(monkeypatch, pipe, 2, MemoryError()) as tried:
        found = pipe(PROMPTS, seed=0, output_type="pt").images
    assert tried == [(0, 5), *[(0, 2), (0, 2), (0, 1)], *[(1, 2), (1, 2), (1, 1)]]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_no_memory_for_a_single_image(pipe, batch, tmp_path, monkeypatch):
    batch("whole", batch_size=4)
    with limited_memory(monkeypatch, pipe, 0, MemoryError()) as tried:
        with pytest.raises(MemoryError, match="not enough memory for a single image; choose a smaller height"):
            batch(batch_size=4)
        assert tried == [(0, 4), (0, 2), (0, 1)]
        assert pipe.text_encoder is not None
    assert batch(batch_size=4).made == 15
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_other_errors_while_drawing_are_not_swallowed(pipe, batch, monkeypatch):
    with (
        limited_memory(monkeypatch, pipe, 0, RuntimeError("shapes differ")),
        pytest.raises(RuntimeError, match="shapes differ"),
    ):
        batch()


def test_an_interruption_keeps_what_was_drawn(pipe, batch, tmp_path, monkeypatch):
    batch("whole", batch_size=4)

    def interrupt(stage, seeds):
        if (stage, seeds[0]) == (1, 5 + 2 * 4):
            raise KeyboardInterrupt

    with sampling_watched(monkeypatch, pipe, interrupt), pytest.raises(KeyboardInterrupt):
        batch(batch_size=4)
    result = batch(batch_size=4)
    assert (result.made, result.kept) == (7, 8)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_what_interrupt_has_left_half_drawn_is_not_kept(pipe, batch, tmp_path, monkeypatch):
    batch("whole", batch_size=4)

    def interrupt(stage, seeds):
        pipe.interrupt = (stage, seeds[0]) == (1, 5 + 4)

    with sampling_watched(monkeypatch, pipe, interrupt):
        result = batch(batch_size=4)
    assert (result.made, result.failed) == (4, 11)
    assert read_run(tmp_path / "run", complete=False).missing == list(range(4, 15))
    result = batch(batch_size=4)
    assert (result.made, result.kept) == (11, 4)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


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


def test_an_unwritable_folder(batch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file; choose a folder"):
        batch("file")
    with pytest.raises(OSError, match="file"):
        batch("file/inside")
