"""docs/deepfloyd.md runs from top to bottom, on small random weights in the place of the published ones."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import torch
from deepfloyd_models import save_both, tiny_t5
from test_documents import ROOT, blocks, commands
from tiny_upscaler import save_tiny_upscaler

from cascade.training.precision import computes_bf16
from conditioning.text import TextEncoder
from pipelines import cli

pytestmark = [
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PAGE = ROOT / "docs" / "deepfloyd.md"
# The published weights, and what stands in for them: 16 -> 32 -> 64 px.
PLACES = {
    "DeepFloyd/IF-I-XL-v1.0": "IF-I",
    "DeepFloyd/IF-II-L-v1.0": "IF-II",
    "stabilityai/stable-diffusion-x4-upscaler": "x2",
    "height=1024": "height=64",
    "width=1536": "width=96",
}


@pytest.mark.slow
def test_the_guide(text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save_both(tmp_path, tiny_t5(text_encoder))
    save_tiny_upscaler(tmp_path / "x2")
    for path in [*tmp_path.glob("IF-*/*/*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))
    text = PAGE.read_text(encoding="utf-8")
    for published, small in PLACES.items():
        assert published in text
        text = text.replace(published, small)
    if not computes_bf16("cpu"):
        text = text.replace("bfloat16", "float32")  # emulated, it takes many minutes
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(text):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec"), names)
        else:
            assert block.language == "bash"
            for command in commands(block):
                assert cli.main(shlex.split(command)[1:]) == 0, command
    shown = capsys.readouterr().out
    assert "(96, 64)" in shown
    assert "enable_sequential_cpu_offload" in shown
    assert "--timesteps fast27 super27" in shown
    assert {"kangaroo.png", "kangaroo", "kangaroo-diffusers"} <= set(os.listdir())
    assert isinstance(names["text"].tokens, torch.Tensor)
