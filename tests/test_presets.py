"""cascade/presets/: every preset is built, counted, stored and run, all on the meta device, which has shapes and no
memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import cascade.presets
from cascade.build import build_stage
from cascade.chain import Cascade
from cascade.config import decode, encode
from cascade.denoiser import Condition
from cascade.networks.attention import Attention
from cascade.stage import Stage, StageConfig
from conditioning.text import TextEmbedding

PARAMETERS = {
    "cdm_32": 280_366_467,
    "cdm_32_to_64": 296_605_443,
    "cdm_64_to_256": 634_351_107,
    "imagen_base_2b": 2_236_084_227,
    "imagen_sr256_600m": 498_860_803,
    "imagen_sr1024_400m": 490_472_195,
    "sr3_16_to_128": 574_746_627,
    "sr3_64_to_256": 633_509_891,
    "sr3_64_to_512": 618_166_275,
    "sr3_256_to_1024": 149_694_515,
    "toybox_base": 7_769_040,
    "toybox_sr256": 3_613_964,
}
CASCADES = [
    ("toybox_base", "toybox_sr256"),
    ("imagen_base_2b", "imagen_sr256_600m", "imagen_sr1024_400m"),
    ("cdm_32", "cdm_32_to_64", "cdm_64_to_256"),
    ("sr3_64_to_256", "sr3_256_to_1024"),
]


def config(name: str) -> StageConfig:
    preset: Callable[[], StageConfig] = getattr(cascade.presets, name)
    return preset()


def on_meta(name: str) -> Stage:
    with torch.device("meta"):
        return build_stage(config(name))


def test_every_preset_is_counted_here() -> None:
    assert set(cascade.presets.__all__) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_to_the_digit(name: str) -> None:
    count = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert count == PARAMETERS[name]
    assert f"    {name:20}{count / 1e6:9.1f} " in (cascade.presets.__doc__ or ""), "the module's table says otherwise"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_survives_json(name: str) -> None:
    stored = json.dumps(encode(config(name)))
    assert decode(StageConfig, json.loads(stored), name) == config(name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_runs_at_its_resolution(name: str) -> None:
    stage, batch = on_meta(name), 2
    network = stage.denoiser.network
    shape = (batch, 3, *stage.config.resolution)
    with torch.device("meta"):
        text = None
        if network.text_width is not None:
            mask = torch.ones(batch, 5, dtype=torch.bool)
            text = TextEmbedding(torch.empty(batch, 5, network.text_width), mask, "trimmed")
        condition = Condition(
            text,
            low_res=None if stage.config.low_resolution is None else torch.empty(shape),
            aug_logsnr=torch.zeros(batch) if network.augmented else None,
            label=torch.zeros(batch, dtype=torch.long) if network.classes is not None else None,
        )
        z, logsnr = torch.empty(shape), torch.zeros(batch)
    with torch.no_grad():
        prepared = stage.denoiser.prepare(condition, batch=batch)
        denoised = stage.denoiser(z, logsnr, prepared)
    assert denoised.x0.shape == shape
    assert denoised.variance_fraction is None


@pytest.mark.parametrize("names", CASCADES, ids=lambda names: names[0].split("_")[0])
def test_stages_chain(names: tuple[str, ...]) -> None:
    chain = Cascade([on_meta(name) for name in names])
    assert chain.sizes() == [stage.config.resolution for stage in chain.stages]
    height, width = chain.stages[-1].config.resolution
    assert chain.sizes((height, 2 * width)) == [(h, 2 * w) for h, w in chain.sizes()]


def attention(name: str) -> list[Attention]:
    return [module for module in on_meta(name).modules() if isinstance(module, Attention)]


def test_where_imagen_attends() -> None:
    base, middle, last = (attention(f"imagen_{name}") for name in ("base_2b", "sr256_600m", "sr1024_400m"))
    assert len(base) == 3 * 3 + 1 + 3 * 4
    assert {layer.query.out_features // layer.heads for layer in base} == {64}
    assert [(layer.heads, layer.key_value is None) for layer in middle] == [(8, False)] * 2
    assert [(layer.heads, layer.key_value is None) for layer in last] == [(8, True)] * 2


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name.startswith("sr3")])
def test_sr3_is_told_the_noise_level_and_the_image_alone(name: str) -> None:
    stage = on_meta(name)
    network = stage.denoiser.network
    assert (network.text_width, network.classes, network.augmented) == (None, None, False)
    assert stage.config.augmentation is None
    assert {layer.heads for layer in attention(name)} == {1}
    # 2000 betas from 1e-6 to 0.01
    assert stage.config.schedule(0.0) == pytest.approx(13.8, abs=0.1)
    assert stage.config.schedule(1.0) == pytest.approx(-10.0, abs=0.1)


def test_a_narrow_level_has_fewer_groups() -> None:
    norms = [module for module in on_meta("sr3_256_to_1024").modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms if norm.num_channels % 32} == {16}
    assert {norm.num_groups for norm in norms if norm.num_channels % 32 == 0} == {32}
