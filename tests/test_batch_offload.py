"""Batches of an offloaded pipeline: a stage comes to the device once for many groups, and the images are the same."""

from collections import Counter

import pytest
import torch
from batch_runs import PROMPTS, closeness, contents, errors, sampling_watched

from pipelines.batch import generation, read_run
from pipelines.offload import Offload
from pipelines.process import Process

GROUP = {"batch_size": 2}  # 8 groups of 15 images


@pytest.fixture
def together(monkeypatch):
    """Six images, or three groups, go through a stage together."""
    monkeypatch.setattr(generation, "TOGETHER", 6)


@pytest.fixture
def arrivals(pipe, monkeypatch):
    """How often each part came to the device as a whole."""
    parts = {"text": pipe.text_encoder.model, **{stage.config.name: stage for stage in pipe.cascade.stages}}
    owners = {id(weight): name for name, part in parts.items() for weight in part.parameters()}
    found = Counter()
    bring = Offload.bring

    def counted(self, tensors):
        came = bring(self, tensors)
        found.update({owners[key] for key in came if key in owners})
        return came

    monkeypatch.setattr(Offload, "bring", counted)
    return found


@pytest.mark.usefixtures("together")
def test_stages_come_once_for_many_groups(pipe, batch, tmp_path, arrivals):
    batch("whole", **GROUP)
    assert not arrivals
    pipe.enable_model_cpu_offload("cpu")
    assert batch(**GROUP).made == 15
    assert arrivals == {"text": 1, "base-8": 3, "sr-16": 3}  # 8 groups are three times up to three
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert not pipe._offload._host


def test_larger_batches_go_one_by_one(pipe, batch, arrivals, monkeypatch):
    monkeypatch.setattr(generation, "TOGETHER", 3)
    pipe.enable_model_cpu_offload("cpu")
    assert batch(batch_size=5).made == 15
    assert arrivals["base-8"] == arrivals["sr-16"] == 3


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("way", ["model", "sequential"])
def test_processes_share_the_work(way, pipe, batch, tmp_path):
    batch("whole", **GROUP)
    getattr(pipe, f"enable_{way}_cpu_offload")("cpu")
    assert [batch(**GROUP, process=Process(rank, 3)).made for rank in range(3)] == [6, 5, 4]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("together")
def test_an_interruption_costs_what_goes_together(pipe, batch, tmp_path, monkeypatch):
    batch("whole", **GROUP)
    pipe.enable_model_cpu_offload("cpu")

    def interrupt(stage, seeds):
        if (stage, seeds[0]) == (1, 5 + 8):  # in the second three groups
            raise KeyboardInterrupt

    with sampling_watched(monkeypatch, pipe, interrupt), pytest.raises(KeyboardInterrupt):
        batch(**GROUP)
    assert not pipe._offload._host
    assert read_run(tmp_path / "run", complete=False).missing == list(range(6, 15))
    assert batch(**GROUP).kept == 6
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("together")
def test_only_the_groups_that_lack_images_are_drawn(pipe, batch, tmp_path, monkeypatch):
    batch(**GROUP)
    before = contents(tmp_path / "run")
    for name in ("00000-1.png", "00002-0.png", "00004-2.png"):  # of the groups 0, 3 and 7, the last of one image
        (tmp_path / "run" / "images" / name).unlink()
    pipe.enable_model_cpu_offload("cpu")
    drawn = []
    with sampling_watched(monkeypatch, pipe, lambda stage, seeds: drawn.append((stage, seeds))):
        assert batch(**GROUP).made == 3
    assert drawn == [(stage, seeds) for stage in (0, 1) for seeds in ([5, 6], [11, 12], [19])]
    assert contents(tmp_path / "run") == before


@pytest.mark.usefixtures("together")
def test_a_prompt_that_the_encoder_refuses(pipe, batch, tmp_path, monkeypatch):
    encode = type(pipe.text_encoder).__call__

    def refusing(self, prompts):
        if any("green" in prompt for prompt in prompts):
            raise ValueError("the prompt is too long")
        return encode(self, prompts)

    monkeypatch.setattr(type(pipe.text_encoder), "__call__", refusing)
    batch("whole", **GROUP)
    pipe.enable_model_cpu_offload("cpu")
    assert batch(**GROUP).failed == 3
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "run")) == 12
    assert errors(tmp_path / "run") == [{"prompt": PROMPTS[2], "error": "the prompt is too long"}]


@pytest.mark.usefixtures("together")
def test_a_stage_that_runs_out_of_memory_keeps_what_the_one_before_it_drew(pipe, batch, tmp_path, monkeypatch):
    batch("whole", batch_size=3)
    pipe.enable_model_cpu_offload("cpu")
    tried = []

    def limited(stage, seeds):
        tried.append((stage, len(seeds)))
        if stage == 1 and len(seeds) > 1:
            raise torch.OutOfMemoryError

    with sampling_watched(monkeypatch, pipe, limited):
        assert batch(batch_size=3).made == 15
    assert tried[:9] == [(0, 3), (0, 3), (1, 3), *[(1, 1)] * 6]
    assert set(tried[9:]) == {(0, 1), (1, 1)}
    assert closeness(tmp_path / "run", tmp_path / "whole") >= 0.999
