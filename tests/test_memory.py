"""`cascade info --memory`, and what it counts, against what torch allocates."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deepfloyd_models import save_both, tiny_t5
from test_deepfloyd_files import FakeHub
from tiny_upscaler import save_tiny_upscaler
from torch.nn.functional import scaled_dot_product_attention

from cascade import Pipeline
from cascade.activations import peak_bytes, sampling_bytes
from cascade.build import build_stage
from cascade.randomness import Draws
from conditioning.text import TextEmbedding, TextEncoder
from pipelines import cli
from pipelines.contents import read_contents
from pipelines.memory import WAYS, Part, describe_memory, parts

pytestmark = [
    pytest.mark.filterwarnings("ignore:these weights are under"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' and transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, text_encoder: TextEncoder) -> Path:
    root = tmp_path_factory.mktemp("deepfloyd")
    save_both(root, tiny_t5(text_encoder))
    save_tiny_upscaler(root / "x2")
    return root


def test_a_peak_in_closed_form() -> None:
    known = torch.empty(1000, device="meta")

    def work() -> None:
        a = known + 1  # 4000 bytes
        b = a + 1  # 8000
        del a
        c = torch.cat([b, b])  # 12000
        del b
        c[:10].add_(1).view(2, 5)  # views and work in place take none
        known.reshape(10, 100).t()

    assert peak_bytes(work, [known]) == 12000


def test_attention_keeps_no_scores() -> None:
    q, k = (torch.empty(2, 4, n, 8, device="meta") for n in (100, 200))
    assert peak_bytes(lambda: scaled_dot_product_attention(q, k, k), [q, k]) == 2 * 4 * 100 * 8 * 4
    keywords = {"query": q, "key": k, "value": k}
    assert peak_bytes(lambda: scaled_dot_product_attention(**keywords), [q, k]) == 2 * 4 * 100 * 8 * 4


@pytest.mark.parametrize("number", [0, 1])
def test_it_is_what_torch_allocates(number: int, root: Path) -> None:
    """The allocator's peak over a real step on the CPU, which the meta device foretells."""
    stage = Pipeline.from_pretrained(root / "IF-I", upscalers=[root / "IF-II"]).cascade.stages[number]
    config, tokens = stage.config, torch.randn(3, 77, 24)
    text = TextEmbedding(tokens, torch.ones(3, 77, dtype=torch.bool), "kept")
    low_res = None if config.low_resolution is None else torch.zeros(3, 3, *config.low_resolution)

    def step() -> None:
        next(stage.sample(Draws(range(3), 0), config.resolution, text=text, null=text, low_res=low_res))

    step()
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    with torch.device("meta"):
        without_memory = build_stage(config)
    foretold = sampling_bytes(without_memory, images=3, tokens=77)
    assert foretold == pytest.approx(most, rel=0.15)


def test_the_parts_are_those_that_are_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("weights.shards.StoredTensors.read", lambda *_: pytest.fail("weights were read"))
        found = parts(read_contents(root / "IF-I", [root / "IF-II", root / "x2"]), images=2)
    pipe = Pipeline.from_pretrained(root / "IF-I", upscalers=[root / "IF-II", root / "x2"])
    modules: dict[str, list[Any]] = {"text encoder": [pipe.text_encoder.model]}
    modules |= {stage.config.name: [stage] for stage in pipe.cascade.stages} | {"upscaler": pipe.upscaler.modules}
    assert [part.name for part in found] == list(modules)
    for part in found:
        own = [module for each in modules[part.name] for module in each.modules()]
        weights = {id(p): p for module in own for p in module.parameters(recurse=False)}
        assert part.parameters == sum(p.numel() for p in weights.values())
        assert part.layer == max(sum(p.numel() for p in module.parameters(recurse=False)) for module in own)
        assert 0 < part.work[torch.bfloat16] < part.work[torch.float32]
    more = parts(read_contents(root / "IF-I"), images=4)
    assert more[1].work[torch.float32] == pytest.approx(2 * found[1].work[torch.float32], rel=0.05)


def test_of_a_hub_id_no_weights_are_fetched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nor of the text encoder that a cascade names."""
    Pipeline.from_pretrained(root / "IF-I").save_pretrained(tmp_path / "named")
    shutil.rmtree(tmp_path / "named" / "text_encoder")
    manifest = json.loads((tmp_path / "named" / "cascade.json").read_text())
    manifest["text_encoder"] |= {"model": "deep/IF-I", "revision": "main"}
    (tmp_path / "named" / "cascade.json").write_text(json.dumps(manifest))
    places = {name: root / name for name in ("IF-I", "IF-II", "x2")} | {"named": tmp_path / "named"}
    hubs = {f"deep/{name}": FakeHub(at, tmp_path / "cache" / name) for name, at in places.items()}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model, **call: hubs[model](model, **call))
    for words, stages in ((["deep/IF-I", "-u", "deep/IF-II", "deep/x2"], 2), (["deep/named"], 1)):
        assert cli.main(["info", *words, "--memory"]) == 0
        shown = capsys.readouterr().out
        for name in ("text encoder", "base-16", "sr-32", "upscaler")[: 1 + stages]:
            assert re.search(rf"^{name} +\d", shown, re.MULTILINE)
    fetched = [name for hub in hubs.values() for name in hub.fetched]
    assert {"unet/config.json", "text_encoder/config.json", "stage-0-base-16/config.json"} <= set(fetched)
    assert not [name for name in fetched if name.endswith((".safetensors", ".bin"))]


def test_the_ways() -> None:
    """100 and 300 parameters, of which a layer has 10 and 200; 1000 and 50 bytes to work on."""
    work = [dict.fromkeys((torch.float32, torch.bfloat16), size) for size in (1000, 50)]
    found = [Part("a", 100, 10, 3, work[0]), Part("b", 300, 200, 5, work[1])]
    needs = [need(found, torch.float32) for need in WAYS.values()]
    assert needs == [400 * 4 + 1000, 100 * 4 + 1000, 13 * 4 + 1000]
    assert [need(found, torch.bfloat16) for need in WAYS.values()] == [400 * 2 + 1000, 1200, 1026]
    text = describe_memory([Part("a", 2**30, 2**20, 0, work[0]), found[1]], 3)
    assert re.search(r"GiB, 3 at a time +parameters +float32 +\+ work +bfloat16", text)
    assert re.search(r"\na +1073\.7 M +4\.00 +0\.00 +2\.00 +0\.00\n", text)
    assert re.search(r"\nenable_model_cpu_offload +4\.00 +2\.00\n", text)


def test_on_the_command_line(root: Path, capsys: pytest.CaptureFixture) -> None:
    both = ["info", str(root / "IF-I"), "--upscalers", str(root / "IF-II"), str(root / "x2")]
    assert cli.main([*both, "--memory", "--max-batch-size", "2"]) == 0
    shown = capsys.readouterr().out
    for name in ("text encoder", "base-16", "sr-32", "upscaler", *WAYS):
        assert re.search(rf"^{name} +\d", shown, re.MULTILINE)
    assert cli.main(both) == 0
    shown = capsys.readouterr().out
    for name in ("base-16", "sr-32", "GFLOPs/step", "text encoder: in the folder, at most 77", "upscaler: in", "Floyd"):
        assert name in shown
    assert cli.main([*both, "--memory", "--max-batch-size", "0"]) == 2
    assert cli.main(["info", str(root / "IF-II"), "--upscalers", str(root / "IF-I")]) == 2
    error = capsys.readouterr().err
    assert "--max-batch-size is 0; expected at least 1" in error
    assert "stage I, which draws from noise" in error


def test_of_a_cascade_of_its_own(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["info", "--memory"]) == 0
    assert re.search(r"^sr-256 +3\.\d M", capsys.readouterr().out, re.MULTILINE)
