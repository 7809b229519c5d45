"""DeepFloyd IF's networks: the same output as diffusers' with the same weights; configs and tensors both ways."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from deepfloyd_models import LARGE, SMALL, VARIANTS, blocks, scheduler_config, stored_config, unet, unet_config

from cascade.build import build_stage, deepfloyd_files, deepfloyd_shapes, deepfloyd_tensors
from cascade.config import decode, encode
from cascade.denoiser import Condition
from cascade.stage import Stage, StageConfig
from conditioning.text import TextEmbedding
from weights import deepfloyd_keys as keys
from weights.deepfloyd import stage_config
from weights.deepfloyd_export import diffusers_configs
from weights.deepfloyd_names import tensor_names
from weights.store import WeightsError


class InMemory:
    """A network's tensors as `weights.shards.StoredTensors` gives them."""

    def __init__(self, network: Any) -> None:
        self.tensors = network.state_dict()

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def our_config(config: dict[str, Any], **changes: Any) -> StageConfig:
    return decode(StageConfig, stage_config(stored_config(config) | changes, "test"), "test")


def ours(theirs: Any, config: dict[str, Any]) -> Stage:
    stage = build_stage(our_config(config)).eval()
    stage.denoiser.network.load_state_dict(dict(deepfloyd_tensors(stage.config, InMemory(theirs))))
    return stage


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


# The output


@pytest.mark.parametrize("size", [(16, 16), (8, 24)], ids=["square", "wide"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_output_is_that_of_diffusers(variant: str, size: tuple[int, int]) -> None:
    config = unet_config(**VARIANTS[variant])
    theirs = unet(config)
    stage = ours(theirs, config)
    images, lengths = 3, torch.tensor([2, 7, 1])
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    text = TextEmbedding(torch.randn(images, 7, width), torch.arange(7)[None] < lengths[:, None], "kept")
    z = torch.randn(images, 3, *size)
    steps, levels = torch.tensor([0, 417, 999]), stage.config.schedule.levels()
    low_res = level = None
    known: dict[str, Any] = {"encoder_hidden_states": text.tokens}
    x = z
    if config["in_channels"] == 6:
        low_res, level = torch.randn(images, 3, *size), torch.full((images,), stage.config.augmentation.logsnr(0.25))
        known["class_labels"] = torch.full((images,), 250)
        x = torch.cat([z, low_res], dim=1)
    wanted = theirs(x, steps, **known).sample
    prepared = stage.denoiser.prepare(Condition(text, low_res, level))
    found = stage.denoiser.output(z, torch.from_numpy(levels)[steps], prepared)
    assert relative_error(found, wanted) <= 1e-5
    for own, reference in zip(found, wanted, strict=True):  # no image hides behind another
        assert relative_error(own, reference) <= 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_the_comparison_sees_a_wrong_tensor() -> None:
    config = unet_config(**LARGE)
    theirs = unet(config)
    stage = ours(theirs, config)
    text = TextEmbedding(torch.randn(1, 5, 24), torch.ones(1, 5) > 0, "kept")
    condition = Condition(text, torch.randn(1, 3, 8, 8), torch.full((1,), stage.config.augmentation.logsnr(0.25)))
    z, at = torch.randn(1, 3, 8, 8), torch.tensor([stage.config.schedule.levels()[417]])
    before = stage.denoiser.output(z, at, stage.denoiser.prepare(condition))
    for name, parameter in stage.denoiser.network.named_parameters():
        kept = parameter.clone()
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
        after = stage.denoiser.output(z, at, stage.denoiser.prepare(condition))
        assert relative_error(after, before) > 1e-5, name
        parameter.copy_(kept)


# Configs and names, both ways


PUBLISHED = {
    "I-M": ({"block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768}, 371_605_830),
    "I-L": ({"block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1280}, 935.4),
    "I-XL": ({"block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816}, 4304.7),
    "II-M": (
        {
            "block_out_channels": [96, 192, 384, 576, 768],
            "cross_attention_dim": 768,
            "time_embedding_dim": 768,
            "only_cross_attention": True,
        },
        461.0,
    ),
    "II-L": (
        {"block_out_channels": [160, 320, 640, 960, 1280], "cross_attention_dim": 1280, "time_embedding_dim": 1280},
        1243.3,
    ),
}


def published(name: str) -> dict[str, Any]:
    """The U-Net config of a published model."""
    own = {"attention_head_dim": 64, "encoder_hid_dim": 4096, "addition_embed_type_num_heads": 64}
    if name.startswith("II-"):
        own |= LARGE | {"sample_size": 256, "layers_per_block": [2, 2, 3, 5, 5]}
        own |= blocks(False, False, False, True, True)
    else:
        own |= {"sample_size": 64, "layers_per_block": 3, **blocks(False, True, True, True)}
    return unet_config(**own | PUBLISHED[name][0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_their_parameters_tensor_by_tensor(name: str) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = published(name)
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**config)
        stage = build_stage(our_config(config))
    count = sum(parameter.numel() for parameter in stage.parameters())
    wanted = PUBLISHED[name][1]
    assert count == wanted if isinstance(wanted, int) else round(count / 1e6, 1) == wanted
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert deepfloyd_shapes(stage) == shapes
    assert len(shapes) == {"I-XL": 775, "II-L": 939}.get(name, len(shapes))
    names = tensor_names(encode(stage.config)["network"])
    assert set(names) == set(stage.denoiser.network.state_dict())
    assert sorted(each for group in names.values() for each in group) == sorted(shapes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_come_back_bit_for_bit(variant: str) -> None:
    config = unet_config(**VARIANTS[variant])
    theirs = unet(config)
    stage = ours(theirs, config)
    _, tensors = deepfloyd_files(stage.config, stage.denoiser.network.state_dict())
    wanted = theirs.state_dict()
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_configs_come_back_as_the_same_network(variant: str) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    config = unet_config(**VARIANTS[variant])
    parts = stored_config(config)
    back = diffusers_configs(encode(our_config(config)))
    assert back.keys() == parts.keys()
    assert stage_config(back, "back") == stage_config(parts, "there")
    with torch.device("meta"):
        first, second = (UNet2DConditionModel.from_config(each["unet"]) for each in (parts, back))
    assert {n: t.shape for n, t in first.state_dict().items()} == {n: t.shape for n, t in second.state_dict().items()}
    for part in parts.keys() - {"unet"}:
        wanted, found = (DDPMScheduler.from_config(each[part]).config for each in (parts, back))
        # To add noise takes the table alone.
        used = (
            [key for key in wanted if key[0] != "_"]
            if part == "scheduler"
            else ["num_train_timesteps", "beta_schedule"]
        )
        assert {key: found[key] for key in used} == {key: wanted[key] for key in used}


def test_missing_keys_have_the_defaults_of_diffusers() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    def defaults(cls: type) -> dict[str, Any]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    for cls, mapped, fixed, idle in (
        (UNet2DConditionModel, keys.UNET, keys.FIXED, keys.IDLE),
        (DDPMScheduler, keys.SCHEDULER, keys.FIXED_SCHEDULER, set()),
    ):
        theirs = {name: plain(value) for name, value in defaults(cls).items()}
        assert set(theirs) == {*mapped, *fixed, *idle}
        assert {name: theirs[name] for name in mapped} == mapped
        assert {name: theirs[name] for name in fixed} == {name: default for name, (default, _) in fixed.items()}


def test_what_the_schedulers_say_is_what_the_stage_does() -> None:
    config = our_config(unet_config())
    assert (config.schedule.kind, config.schedule.steps, config.prediction) == ("cosine", 1000, "eps")
    own = config.sampling
    assert (own.thresholding.kind, own.thresholding.percentile, own.thresholding.max_value) == ("dynamic", 0.95, 1.5)
    assert (own.sampler, own.spacing, own.ddpm_variance, config.learned_variance) == ("ddpm", "leading", None, True)
    changed = scheduler_config(
        variance_type="fixed_large", thresholding=False, prediction_type="v_prediction", beta_schedule="linear"
    )
    config = our_config(unet_config(), scheduler=changed)
    assert (config.schedule.kind, config.prediction, config.sampling.ddpm_variance) == ("linear", "v", 1.0)
    assert config.sampling.thresholding.kind == "static"
    assert our_config(unet_config(), scheduler=changed | {"clip_sample": False}).sampling.thresholding.kind == "none"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"_class_name": "UNet2DModel"}, "is of a UNet2DModel"),
        ("unet", {"surprise": 3}, "unknown key 'surprise'"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ("unet", {"cross_attention_norm": None}, "cross_attention_norm = None"),
        ("unet", {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, "down_block_types"),
        ("unet", {"up_block_types": ["ResnetUpsampleBlock2D"] * 2}, "mirror image"),
        ("unet", {"block_out_channels": [64, 96]}, "multiples of the first"),
        ("unet", {"sample_size": None}, "sample_size = None"),
        ("unet", {"in_channels": 6}, "in_channels = 6; expected 3"),
        ("unet", {"class_embed_type": "projection"}, "class_embed_type"),
        ("unet", {"mid_block_scale_factor": 1.414}, "mid_block_scale_factor = 1.414"),
        ("unet", {"time_embedding_act_fn": "gelu"}, "time_embedding_act_fn"),
        ("unet", {"resnet_skip_time_act": True}, "resnet_skip_time_act"),
        ("unet", {"attention_head_dim": [8, 16]}, "one value for all levels"),
        ("unet", {"out_channels": 4}, "out_channels = 4"),
        ("scheduler", {"_class_name": "PNDMScheduler"}, "is of a PNDMScheduler"),
        ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
        ("scheduler", {"timestep_spacing": "linspace"}, "timestep_spacing = 'linspace'"),
        ("scheduler", {"variance_type": "learned"}, "variance_type = 'learned'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(part: str, changes: dict[str, Any], message: str) -> None:
    parts = stored_config(SMALL)
    with pytest.raises(WeightsError, match=message):
        stage_config(parts | {part: parts[part] | changes}, "here")
