"""The run folder: who may write it, what is refused, and how the work is shared."""

import pytest
import torch
from batch_runs import PROMPTS, contents

from pipelines.batch import read_run
from pipelines.batch.run import Lines
from pipelines.batch.share import find_share
from pipelines.process import Process


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
    with pytest.raises(ValueError, match=rf"^'.*run' holds a run with other settings: .*{message}"):
        batch(**options)
    assert contents(tmp_path / "run") == before


def test_other_weights_are_refused(pipe, batch):
    batch()
    with torch.no_grad():
        next(pipe.cascade.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match=r"weights is 'sha256:.*' there and 'sha256:.*' here"):
        batch()


@pytest.mark.parametrize(("name", "here"), [("preprocessing", "lower"), ("null_prompt", "")])
def test_another_reading_of_prompts_is_refused(pipe, batch, monkeypatch, name, here):
    batch()
    monkeypatch.setattr(pipe.text_encoder, name, here)
    with pytest.raises(ValueError, match=f"{name} is None there and '{here}' here"):
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
