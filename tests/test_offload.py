"""Offloading: the same images, and on the device never more than what is at work."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from deepfloyd_models import save_both, tiny_t5
from tiny_upscaler import save_tiny_upscaler
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from cascade import Pipeline
from conditioning.text import TextEncoder
from pipelines import cli

pytestmark = [
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CALL: dict[str, Any] = {"prompt": ["a red car", "a ball"], "seed": 3, "num_inference_steps": 2, "output_type": "pt"}
WAYS = {"model": Pipeline.enable_model_cpu_offload, "sequential": Pipeline.enable_sequential_cpu_offload}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    root = tmp_path_factory.mktemp("deepfloyd")
    save_both(root, tiny_t5(text_encoder))
    save_tiny_upscaler(root / "x2")
    return root


@pytest.fixture
def pipe(root: Path) -> Pipeline:
    pipe = Pipeline.from_pretrained(root / "IF-I", upscalers=[root / "IF-II"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


class OnTheDevice(TorchFunctionMode):
    """Sees every operation on a weight: fails for one that is not on the device, and notes which modules are there."""

    def __init__(self, pipe: Pipeline) -> None:
        super().__init__()
        self.offload = pipe._offload
        self.owners = {"text": pipe.text_encoder.model} | {s.config.name: s for s in pipe.cascade.stages}
        self.order: list[str] = []
        self.layers = 0  # the most layers there at once

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        weights = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter)]
        if weights and name in ("linear", "conv2d", "group_norm", "layer_norm", "embedding", "add", "mul", "__add__"):
            assert all(weight in self.offload for weight in weights), f"{name} with weights that are not there"
            with torch._C.DisableTorchFunction():
                there = [who for who, m in self.owners.items() if any(p in self.offload for p in m.parameters())]
                self.layers = max(self.layers, len(self.offload._host))
            assert len(there) == 1, f"{there} are there at once"
            if self.order[-1:] != there:
                self.order += there
        return func(*args, **kwargs)


@contextmanager
def watched(pipe: Pipeline) -> Iterator[OnTheDevice]:
    with OnTheDevice(pipe) as mode:
        yield mode
    assert not pipe._offload._host, "something stayed on the device"


@pytest.mark.parametrize("way", WAYS)
def test_one_at_a_time_and_the_same_images(way: str, pipe: Pipeline) -> None:
    wanted = pipe(**CALL).images
    WAYS[way](pipe, "cpu")
    with watched(pipe) as mode:
        found = pipe(**CALL, max_batch_size=1).images
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert mode.order == ["text", "base-16", "sr-32"]  # each brought once, though there are two batches
    most = max(len([*module.parameters()]) for module in mode.owners.values())
    if way == "model":
        assert mode.layers == most
    else:  # the layers through which an input goes, and those that tell the device
        assert mode.layers <= 12 < most


@pytest.mark.parametrize("way", WAYS)
def test_the_encoder_works_by_itself(way: str, pipe: Pipeline) -> None:
    wanted = pipe.encode_prompt("a ball")[0].tokens
    WAYS[way](pipe, "cpu")
    with watched(pipe) as mode:
        assert torch.equal(pipe.text_encoder(["a ball"]).tokens, wanted)
    assert mode.order == ["text"]


@pytest.mark.parametrize("way", WAYS)
def test_weights_can_be_saved_and_moved_meanwhile(way: str, pipe: Pipeline, tmp_path: Path) -> None:
    wanted = pipe(**CALL).images
    WAYS[way](pipe, "cpu")
    pipe(**CALL)
    pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**CALL).images, wanted)
    pipe.to(torch.bfloat16)
    assert pipe._offload is not None
    assert pipe.dtype == torch.bfloat16
    assert pipe(**CALL).images.dtype == torch.float32
    pipe.to("cpu", torch.float32)
    assert pipe._offload is None
    assert not any(hasattr(module, "_hf_hook") for module in pipe.cascade.modules())
    assert (pipe(**CALL).images - wanted).abs().mean() < 0.05


def test_after_an_error_nothing_stays(pipe: Pipeline) -> None:
    pipe.enable_model_cpu_offload("cpu")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(callback_on_step_end=fail, **CALL)
    assert not pipe._offload._host


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_let_go_is_freed(way: str, pipe: Pipeline) -> None:
    wanted = pipe(**CALL).images
    WAYS[way](pipe, "cpu")
    text, null = pipe.encode_prompt(CALL["prompt"])
    encoder = weakref.ref(pipe.text_encoder.model)
    pipe.text_encoder = None
    gc.collect()
    assert encoder() is None
    embedded = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": null}
    assert torch.equal(pipe(**CALL | embedded).images, wanted)


@pytest.mark.parametrize("way", WAYS)
def test_with_an_upscaler(way: str, root: Path) -> None:
    pipe = Pipeline.from_pretrained(root / "IF-I", upscalers=[root / "x2"])
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(**CALL).images
    WAYS[way](pipe, "cpu")
    torch.testing.assert_close(pipe(**CALL).images, wanted, rtol=0, atol=1e-4)
    pipe.to("cpu")
    torch.testing.assert_close(pipe(**CALL).images, wanted, rtol=0, atol=1e-4)


def test_nothing_is_read_before_it_is_needed(root: Path) -> None:
    """Weights in the type of their file are views of it, which nothing copies, also when they come and go."""
    pipe = Pipeline.from_pretrained(root / "IF-I", upscalers=[root / "IF-II"])
    pipe.enable_model_cpu_offload("cpu")
    stage = pipe.cascade.stages[0]
    weight = stage.denoiser.network.stem.weight
    size = (root / "IF-I/unet/diffusion_pytorch_model.safetensors").stat().st_size
    assert weight.untyped_storage().nbytes() in (size, weight.numel() * 4)
    place = weight.data_ptr()
    with pipe.at_work(stage):
        pass
    assert weight.data_ptr() == place


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", WAYS)
def test_on_a_gpu(way: str, pipe: Pipeline) -> None:
    wanted = pipe(**CALL).images
    WAYS[way](pipe)
    torch.testing.assert_close(pipe(**CALL).images, wanted, rtol=0, atol=1e-2)
    assert {p.device.type for p in pipe.cascade.parameters()} == {"cpu"}


def test_on_the_command_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for offload in ("none", "model", "sequential"):
        options = ["--model", str(root / "IF-I"), "--steps", "2", "--seed", "1", "--offload", offload]
        assert cli.main(["generate", "a ball", "-o", str(tmp_path / f"{offload}.png"), *options]) == 0
    images = [Image.open(tmp_path / f"{offload}.png").tobytes() for offload in ("none", "model", "sequential")]
    assert images[0] == images[1] == images[2]
