"""DeepFloyd IF, as diffusers stores it: its configs read as ours (`weights.deepfloyd_export` writes them).

A folder holds one stage: model_index.json, and a folder each for unet, scheduler, and, for stage II,
image_noising_scheduler. A value that our networks do not implement is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weights.deepfloyd_keys import (
    BASE,
    DOWN,
    FIXED,
    FIXED_SCHEDULER,
    IDLE,
    PREDICTIONS,
    SCHEDULER,
    SUPER_RESOLUTION,
    TABLES,
    UNET,
    UP,
    VARIANCES,
)
from weights.store import WeightsError, read_json

LICENCE = "DeepFloyd IF License Agreement (non-commercial research)"


def is_pipeline(folder: Path) -> bool:
    """Whether a folder has the layout of a diffusers pipeline."""
    return (folder / "model_index.json").is_file()


def read_stage_config(folder: Path, low_resolution: list[int] | None = None) -> dict[str, Any]:
    """The config of the stage in a folder, as ours. Raises WeightsError.

    low_resolution: the size that stage II enlarges, which diffusers does not store; a quarter of its own if None.
    """
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind not in BASE + SUPER_RESOLUTION:
        raise WeightsError(
            f"{folder / 'model_index.json'} is of a {kind}; of diffusers' pipelines Cascade reads DeepFloyd IF's alone "
            f"({BASE[0]}, {SUPER_RESOLUTION[0]})"
        )
    needed = ["unet", "scheduler"] + ["image_noising_scheduler"] * (kind in SUPER_RESOLUTION)
    configs = {}
    for part in needed:
        path = folder / part / ("config.json" if part == "unet" else "scheduler_config.json")
        if not path.is_file():
            raise WeightsError(f"{path} is missing: a {kind} has {', '.join(needed)}; copy or download it again")
        configs[part] = read_json(path)
    try:
        return stage_config(configs, str(folder), low_resolution)
    except (TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{folder}: a config has a value of a kind that it cannot have ({error})") from error


def stage_config(
    configs: Mapping[str, Mapping[str, Any]], where: str, low_resolution: list[int] | None = None
) -> dict[str, Any]:
    """The same from the contents of the components' configs; ``where`` begins messages."""
    unet = _checked(configs["unet"], "UNet2DConditionModel", UNET, FIXED, IDLE, f"{where}: unet")
    scheduler = _scheduler(configs["scheduler"], f"{where}: scheduler")
    noising = configs.get("image_noising_scheduler")
    channels = 3 if noising is None else 6
    if unet["in_channels"] != channels:
        raise WeightsError(f"{where}: unet has in_channels = {unet['in_channels']!r}; expected {channels}")
    if scheduler["variance_type"] == "learned_range" and unet["out_channels"] != 6:
        raise WeightsError(f"{where}: unet has out_channels = {unet['out_channels']!r}; a learned variance needs 6")
    size = unet["sample_size"]
    resolution = list(size) if isinstance(size, list | tuple) else [size, size]
    if not all(isinstance(side, int) for side in resolution):
        raise WeightsError(f"{where}: unet has sample_size = {size!r}; expected the side of its images in pixels")
    return {
        "name": f"{'base' if noising is None else 'sr'}-{resolution[0]}",
        "resolution": resolution,
        "low_resolution": None if noising is None else low_resolution or [side // 4 for side in resolution],
        "upsampling": "bilinear",
        "network": _network(unet, f"{where}: unet"),
        "schedule": _table(scheduler),
        "prediction": PREDICTIONS[scheduler["prediction_type"]],
        "learned_variance": unet["out_channels"] == 6,
        "augmentation": None
        if noising is None
        else {
            "schedule": (table := _table(_scheduler(noising, f"{where}: image_noising_scheduler"))),
            "max_level": 1 - 1 / table["steps"],
        },
        "sampling": {
            "steps": 100 if noising is None else 50,  # these two, and the noise level 250, are diffusers' defaults
            "guidance_scale": 7.0 if noising is None else 4.0,
            "sampler": "ddpm",
            "spacing": "leading",
            "thresholding": _thresholding(scheduler),
            "aug_level": 0.25,
            "ddpm_variance": VARIANCES[scheduler["variance_type"]],
        },
    }


def _checked(
    config: Mapping[str, Any],
    kind: str,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, Any]],
    idle: set[str],
    where: str,
) -> dict[str, Any]:
    """The mapped keys, with defaults filled in; everything else checked."""
    if config.get("_class_name", kind) != kind:
        raise WeightsError(f"{where} is of a {config['_class_name']}; expected {kind}")
    for key, value in config.items():
        if not key.startswith("_") and value is not None and key not in {*defaults, *fixed, *idle}:
            raise WeightsError(f"{where} has the unknown key {key!r} (= {value!r})")
    for key, (default, wanted) in fixed.items():
        found = config.get(key, default)
        if found != wanted:
            raise WeightsError(f"{where} has {key} = {found!r}; DeepFloyd IF, as implemented here, has {wanted!r}")
    return {key: config.get(key, default) for key, default in defaults.items()}


def _scheduler(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = _checked(config, "DDPMScheduler", SCHEDULER, FIXED_SCHEDULER, set(), where)
    for key, known in (
        ("beta_schedule", TABLES),
        ("prediction_type", PREDICTIONS),
        ("variance_type", VARIANCES),
    ):
        if found[key] not in known:
            raise WeightsError(f"{where} has {key} = {found[key]!r}; expected one of {', '.join(known)}")
    return found


def _table(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "DiscreteTable",
        "kind": TABLES[scheduler["beta_schedule"]],
        "steps": scheduler["num_train_timesteps"],
        "beta_start": scheduler["beta_start"],
        "beta_end": scheduler["beta_end"],
    }


def _thresholding(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    kind = "dynamic" if scheduler["thresholding"] else "static" if scheduler["clip_sample"] else "none"
    return {
        "kind": kind,
        "percentile": scheduler["dynamic_thresholding_ratio"],
        "max_value": scheduler["sample_max_value"],
    }


def _network(unet: Mapping[str, Any], where: str) -> dict[str, Any]:
    def refuse(key: str, expected: str) -> WeightsError:
        return WeightsError(f"{where} has {key} = {unet[key]!r}; expected {expected}")

    def single(key: str) -> Any:
        """A value that may be given per level, where it is the same for all."""
        value = unet[key]
        if not isinstance(value, list | tuple):
            return value
        if len(set(value)) != 1:
            raise refuse(key, "one value for all levels")
        return value[0]

    down, up, widths = unet["down_block_types"], unet["up_block_types"], unet["block_out_channels"]
    for key, known in (("down_block_types", DOWN), ("up_block_types", UP)):
        if any(kind not in known for kind in unet[key]):
            raise refuse(key, f"some of {', '.join(known)}")
    attends = [DOWN[kind] for kind in down]
    if len(widths) != len(down) or [UP[kind] for kind in up] != attends[::-1] or not any(attends):
        raise refuse("up_block_types", f"the mirror image of down_block_types {down}, with attention in some")
    if any(width % widths[0] for width in widths):
        raise refuse("block_out_channels", "multiples of the first")
    if unet["out_channels"] not in (3, 6):
        raise refuse("out_channels", "3, or 6 with the variance")
    if unet["class_embed_type"] != ("timestep" if unet["in_channels"] == 6 else None):
        raise refuse("class_embed_type", '"timestep" for stage II, null for stage I')
    if unet["mid_block_scale_factor"] != unet["resnet_out_scale_factor"]:
        raise refuse("mid_block_scale_factor", f"resnet_out_scale_factor, {unet['resnet_out_scale_factor']}")
    text_only = single("only_cross_attention")
    if unet["mid_block_only_cross_attention"] not in (None, text_only):
        raise refuse("mid_block_only_cross_attention", f"null or only_cross_attention, {text_only}")
    # Either every block applies the activation to the embedding, or it is applied once for all of them: the same.
    once = (unet["act_fn"], True) if unet["resnet_skip_time_act"] else (None, False)
    if (unet["time_embedding_act_fn"], unet["resnet_skip_time_act"]) != once:
        raise refuse("time_embedding_act_fn", f"{once[0]!r} with resnet_skip_time_act {once[1]}")
    layers = unet["layers_per_block"]
    projected = unet["encoder_hid_dim"] is not None
    return {
        "type": "UNet",
        "width": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": [layers] * len(widths) if isinstance(layers, int) else list(layers),
        "attention_levels": [level for level, attends_here in enumerate(attends) if attends_here],
        "embedding_width": unet["time_embedding_dim"] or 4 * widths[0],
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "head_channels": single("attention_head_dim"),
        "text_width": unet["encoder_hid_dim"] if projected else single("cross_attention_dim"),
        "augmented": unet["class_embed_type"] == "timestep",
        "groups": unet["norm_num_groups"],
        "dropout": unet["dropout"],
        "residual_scale": 1 / unet["resnet_out_scale_factor"],
        "attention": "text" if text_only else "joint",
        "attention_bias": True,
        "text_projection": single("cross_attention_dim") if projected else None,
        "text_norm": "group",
        "pool_heads": unet["addition_embed_type_num_heads"],
        "activation": unet["act_fn"],
        "norm_eps": unet["norm_eps"],
    }
