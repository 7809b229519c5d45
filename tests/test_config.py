"""cascade/config.py and cascade/build.py: configs to JSON and back, strictly; stages to files and back, bit for bit."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cascade import presets
from cascade.build import build_stage, load_network, load_stage, stage_files, stage_folder
from cascade.config import ConfigError, decode, encode
from cascade.denoiser import Condition
from cascade.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from cascade.networks.unet import UNet, UNetConfig
from cascade.schedules import Cosine, DiscreteTable, InterpolatedCosine, LinearBeta
from cascade.stage import Augmentation, Sampling, Stage, StageConfig
from cascade.thresholding import Thresholding
from conditioning.text import TextEmbedding
from weights.store import WeightsError, save_cascade

MANIFEST = {"text_encoder": None, "licence": "Apache-2.0", "provenance": {}}
BASE = UNetConfig(32, (1, 2), (1, 1), (1,), 32, head_channels=32, text_width=16)
SR = EfficientUNetConfig(32, (1,), (1,), 32, heads=2, attention="text", text_width=16)
EVERYTHING = StageConfig(
    name="sr-16",
    resolution=(16, 24),
    network=replace(SR, out_channels=6),
    low_resolution=(8, 12),
    schedule=DiscreteTable("linear", 100),
    prediction="eps",
    learned_variance=True,
    augmentation=Augmentation(InterpolatedCosine(-9.0, 9.0), 0.5, (0.4, 0.6), 0.25),
    sampling=Sampling(7, "dpmpp_2m", 2.5, (-3.0, 4.0), Thresholding("dynamic", 0.9, 1.5), 0.2),
)
PLAIN = StageConfig("base-8", (8, 8), BASE, schedule=LinearBeta(), prediction="x")


def changed(data: dict, path: str, value: Any = ...) -> dict:
    """A copy with one value replaced, or removed."""
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def randomized(stage: Stage) -> Stage:
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stage.eval()


# JSON


@pytest.mark.parametrize(
    "config", [EVERYTHING, PLAIN, *presets.__all__], ids=lambda c: c if isinstance(c, str) else c.name
)
def test_a_config_survives_json(config: StageConfig | str) -> None:
    if isinstance(config, str):
        config = getattr(presets, config)()
    text = json.dumps(encode(config), allow_nan=False)
    assert decode(StageConfig, json.loads(text), "here") == config
    assert json.dumps(encode(decode(StageConfig, json.loads(text), "here"))) == text


def test_a_union_is_told_apart_by_its_type() -> None:
    data = encode(EVERYTHING)
    assert data["network"]["type"] == "EfficientUNet"
    assert data["schedule"] == {
        "type": "DiscreteTable",
        "kind": "linear",
        "steps": 100,
        "beta_start": 1e-4,
        "beta_end": 0.02,
    }
    assert data["augmentation"]["schedule"]["type"] == "InterpolatedCosine"
    assert encode(PLAIN)["network"]["type"] == "UNet"
    assert encode(PLAIN)["augmentation"] is None
    assert "type" not in data["sampling"]


def test_defaults_may_be_left_out() -> None:
    data = {
        "name": "base",
        "resolution": [8, 8],
        "network": {
            "type": "UNet",
            "width": 32,
            "multipliers": [1],
            "blocks": [1],
            "attention_levels": [],
            "embedding_width": 32,
        },
    }
    wanted = StageConfig("base", (8, 8), UNetConfig(32, (1,), (1,), (), 32))
    assert decode(StageConfig, data, "here") == wanted


@dataclass(frozen=True)
class Inner:
    number: int = 0


@dataclass(frozen=True)
class Sample:
    whole: int
    real: float = 0.0
    flag: bool = False
    name: str = ""
    choice: Literal["a", "b"] | None = None
    pair: tuple[int, float] | None = None
    many: tuple[float, ...] = ()
    inner: Inner | None = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"whole": 1, "real": 2}, Sample(1, 2.0)),
        ({"whole": 1, "many": [1, 2.5]}, Sample(1, many=(1.0, 2.5))),
        ({"whole": 1, "pair": (1, 2)}, Sample(1, pair=(1, 2.0))),
        ({"whole": 1, "choice": "b", "flag": True}, Sample(1, choice="b", flag=True)),
        ({"whole": 1, "pair": None, "choice": None, "inner": None}, Sample(1, inner=None)),
        ({"whole": 1, "inner": {"number": 3}}, Sample(1, inner=Inner(3))),
    ],
)
def test_values_that_fit(data: dict, wanted: Sample) -> None:
    found = decode(Sample, data, "here")
    assert found == wanted
    assert all(type(a) is type(b) for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True))
    assert all(isinstance(value, float) for value in found.many)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"whole": True}, "here: whole must be a value of type int, got True"),
        ({"whole": "1"}, "here: whole must be a value of type int, got '1'"),
        ({"whole": 1.0}, "here: whole must be a value of type int, got 1.0"),
        ({"whole": None}, "here: whole must be a value of type int, got None"),
        ({"whole": 1, "real": True}, "here: real must be a value of type float, got True"),
        ({"whole": 1, "real": "0.5"}, "here: real must be a value of type float, got '0.5'"),
        ({"whole": 1, "flag": 1}, "here: flag must be a value of type bool, got 1"),
        ({"whole": 1, "name": 1}, "here: name must be a value of type str, got 1"),
        ({"whole": 1, "choice": "c"}, "here: choice must be one of 'a', 'b' or null, got 'c'"),
        ({"whole": 1, "choice": ["a"]}, "here: choice must be one of 'a', 'b' or null, got ['a']"),
        ({"whole": 1, "pair": [1]}, "here: pair must be a list of 2 (tuple[int, float]) or null, got [1]"),
        ({"whole": 1, "pair": [1, 2, 3]}, "here: pair must be a list"),
        ({"whole": 1, "pair": ["a", 2]}, "here: pair[0] must be a value of type int, got 'a'"),
        ({"whole": 1, "many": 3.0}, "here: many must be a list (tuple[float, ...]), got 3.0"),
        ({"whole": 1, "many": "123"}, "here: many must be a list"),
        ({"whole": 1, "many": [1, 2, False]}, "here: many[2] must be a value of type float, got False"),
        ({"whole": 1, "inner": 3}, "here: inner must be an object with the keys of Inner, got 3"),
        ({"whole": 1, "inner": {"number": 1, "x": 2}}, "here: inner has the unknown key 'x'; expected some of number"),
        ({"real": 1.0}, "here lacks 'whole'"),
        ({"whole": 1, "hole": 2}, "here has the unknown key 'hole'; expected some of whole, real, flag"),
        ([], "here must be an object with the keys of Sample, got []"),
    ],
)
def test_values_that_do_not_fit_are_named(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        decode(Sample, data, "here")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("network.width", "32", "config.json: network: width must be a value of type int, got '32'"),
        ("network.width", ..., "config.json: network lacks 'width'"),
        ("network.colour", "red", "config.json: network has the unknown key 'colour'; expected some of width, "),
        ("network.attention", "image", "config.json: network: attention must be one of 'joint', 'text' or null, got"),
        (
            "network.multipliers",
            [1, True],
            "config.json: network: multipliers[1] must be a value of type int, got True",
        ),
        (
            "network.type",
            "Transformer",
            'config.json: network must be an object whose "type" is one of UNet, EfficientUNet',
        ),
        ("network.type", ..., 'network must be an object whose "type" is one of'),
        ("network", None, 'network must be an object whose "type" is one of'),
        ("network", "UNet", "network must be an object whose \"type\" is one of UNet, EfficientUNet, got 'UNet'"),
        (
            "augmentation.schedule.type",
            "Sine",
            '"type" is one of Cosine, InterpolatedCosine, LinearBeta, DiscreteTable',
        ),
        ("sampling.thresholding.kind", "hard", "config.json: sampling: thresholding: kind must be one of 'dynamic', "),
        ("sampling.guidance_interval", [1.0], "config.json: sampling: guidance_interval must be a list"),
        ("learned_variance", 1, "config.json: learned_variance must be a value of type bool, got 1"),
        ("resolution", [16], "config.json: resolution must be a list"),
        # What a config itself refuses, with its place.
        ("network.width", 40, "config.json: network: width must be a multiple of"),
        ("sampling.steps", 0, "config.json: sampling: steps must be at least 1, got 0"),
        ("resolution", [16, 25], "config.json: resolution (16, 25) is not divisible by the network's 2"),
    ],
)
def test_messages_name_the_place_in_a_stage(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        decode(StageConfig, changed(encode(EVERYTHING), path, value), "config.json")


def test_toml_is_read_alike() -> None:
    data = tomllib.loads("whole = 3\nmany = [1, 2.5]\n[inner]\nnumber = 4\n")
    assert decode(Sample, data, "x.toml") == Sample(3, many=(1.0, 2.5), inner=Inner(4))


# Building


@pytest.mark.parametrize(("config", "kind"), [(PLAIN, UNet), (EVERYTHING, EfficientUNet)])
def test_a_stage_is_built_as_its_config_says(config: StageConfig, kind: type) -> None:
    stage = build_stage(config)
    assert type(stage.denoiser.network) is kind
    assert stage.config == config
    assert stage.denoiser.network.config == config.network
    assert (stage.denoiser.schedule, stage.denoiser.prediction) == (config.schedule, config.prediction)
    assert stage.denoiser.learned_variance == config.learned_variance


@pytest.mark.parametrize("name", presets.__all__)
def test_presets_build_without_memory(name: str) -> None:
    with torch.device("meta"):
        stage = build_stage(getattr(presets, name)())
    assert all(tensor.is_meta for tensor in stage.state_dict().values())
    assert sum(parameter.numel() for parameter in stage.parameters()) > 0


def test_folders_are_named_after_number_and_stage() -> None:
    assert [stage_folder(i, config) for i, config in enumerate((PLAIN, EVERYTHING))] == [
        "stage-0-base-8",
        "stage-1-sr-16",
    ]


# Files


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[Stage]]:
    stages = [randomized(build_stage(config)) for config in (PLAIN, EVERYTHING)]
    files = {stage_folder(i, stage.config): stage_files(stage) for i, stage in enumerate(stages)}
    save_cascade(tmp_path / "cascade", MANIFEST, files)
    return tmp_path / "cascade", stages


def test_a_stored_stage_is_loaded_bit_equal(saved: tuple[Path, list[Stage]]) -> None:
    folder, stages = saved
    for name, stage in zip(("stage-0-base-8", "stage-1-sr-16"), stages, strict=True):
        found = load_stage(folder, name)
        assert found.config == stage.config
        assert not found.training
        wanted = stage.state_dict()
        assert found.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.state_dict().items())
        assert all(p.requires_grad and not p.is_meta for p in found.parameters())


def test_a_loaded_stage_denoises_the_same(saved: tuple[Path, list[Stage]]) -> None:
    folder, stages = saved
    z, text = torch.randn(1, 3, 8, 8), TextEmbedding(torch.randn(1, 3, 16), torch.ones(1, 3) > 0)
    found, wanted = (
        stage.denoiser(z, 0.5, stage.denoiser.prepare(Condition(text))).x0
        for stage in (load_stage(folder, "stage-0-base-8"), stages[0])
    )
    assert wanted.std() > 0
    torch.testing.assert_close(found, wanted)  # to rounding: where weights lie in memory can decide how sums are made


def test_a_dtype_is_rounded_to_once(saved: tuple[Path, list[Stage]], tmp_path: Path) -> None:
    folder, stages = saved
    half = load_stage(folder, "stage-0-base-8", torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    wanted = {name: tensor.bfloat16() for name, tensor in stages[0].state_dict().items()}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in half.state_dict().items())
    save_cascade(tmp_path / "half", MANIFEST, {"stage-0-base-8": stage_files(stages[0], torch.bfloat16)})
    for dtype, kept in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        again = load_stage(tmp_path / "half", "stage-0-base-8", dtype)
        assert {tensor.dtype for tensor in again.state_dict().values()} == {kept}
        assert all(torch.equal(tensor, wanted[name].to(kept)) for name, tensor in again.state_dict().items())


def test_loading_replaces_every_weight_of_a_built_stage() -> None:
    source, target = randomized(build_stage(PLAIN)), randomized(build_stage(PLAIN))
    load_network(target, stage_files(source).tensors, "here")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_tensors_that_do_not_fit_are_named_with_their_file(
    saved: tuple[Path, list[Stage]], tmp_path: Path, change: str
) -> None:
    files = stage_files(saved[1][0])
    tensors = dict(files.tensors)
    if change == "missing":
        del tensors["stem.weight"]
        line = "1 missing: stem.weight"
    elif change == "unexpected":
        tensors["stem.extra"] = torch.zeros(2)
        line = "1 unexpected: stem.extra"
    else:
        tensors["stem.weight"] = tensors["stem.weight"][:, :2]
        line = "1 misshapen: stem.weight (32, 2, 3, 3), expected (32, 3, 3, 3)"
    save_cascade(tmp_path / "bent", MANIFEST, {"stage-0-base-8": replace(files, tensors=tensors)})
    with pytest.raises(WeightsError, match=re.escape(line)) as caught:
        load_stage(tmp_path / "bent", "stage-0-base-8")
    assert "bent/stage-0-base-8/model.safetensors" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file_is_named(saved: tuple[Path, list[Stage]], keep: int) -> None:
    path = saved[0] / "stage-1-sr-16" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"stage-1-sr-16/model\.safetensors is truncated or damaged"):
        load_stage(saved[0], "stage-1-sr-16")
    load_stage(saved[0], "stage-0-base-8")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", "red", "stage-1-sr-16/config.json has the unknown key 'colour'"),
        ("network.width", ..., "stage-1-sr-16/config.json: network lacks 'width'"),
        (
            "schedule",
            {"type": "Cosine", "logsnr_min": 5.0, "logsnr_max": 1.0},
            "config.json: schedule: logsnr_min must be",
        ),
    ],
)
def test_a_stored_config_that_is_wrong_names_its_file(
    saved: tuple[Path, list[Stage]], path: str, value: Any, message: str
) -> None:
    file = saved[0] / "stage-1-sr-16" / "config.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_stage(saved[0], "stage-1-sr-16")


def test_a_stage_loaded_with_another_schedule_keeps_its_weights(saved: tuple[Path, list[Stage]]) -> None:
    file = saved[0] / "stage-0-base-8" / "config.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), "schedule", {"type": "Cosine", "shift": -1})))
    found = load_stage(saved[0], "stage-0-base-8")
    assert found.denoiser.schedule == Cosine(shift=-1.0)
    assert torch.equal(next(found.parameters()), next(saved[1][0].parameters()))
