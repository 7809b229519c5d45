"""The way back: a stage of DeepFloyd IF's architecture as the configs of diffusers' components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights.deepfloyd_keys import DOWN, FIXED, FIXED_SCHEDULER, PREDICTIONS, TABLES, UP, VARIANCES
from weights.store import WeightsError


def diffusers_configs(stage: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A stage's config as the configs of diffusers' components. Raises WeightsError for a stage that is not of IF's
    architecture.
    """
    network, sampling = stage["network"], stage["sampling"]
    name = f"stage {stage['name']!r}"
    wanted = {"type": "UNet", "attention_bias": True, "text_norm": "group", "classes": None, "patch": 1}
    for key, value in wanted.items():
        if network.get(key, value) != value:
            raise WeightsError(
                f"{name} is not of DeepFloyd IF's architecture: {key} is {network[key]!r}, not {value!r}"
            )
    if network.get("pool_heads") is None or stage["schedule"]["type"] != "DiscreteTable":
        raise WeightsError(f"{name} is not of DeepFloyd IF's architecture; only that is written in diffusers' layout")
    large = stage["low_resolution"] is not None
    widths = [network["width"] * multiplier for multiplier in network["multipliers"]]
    attends = [level in network["attention_levels"] for level in range(len(widths))]
    scale = 1 / network["residual_scale"]
    projection = network["text_projection"]
    size = stage["resolution"]
    unet = {key: value for key, (_, value) in FIXED.items()} | {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": network["in_channels"],
        "out_channels": network["out_channels"],
        "down_block_types": [list(DOWN)[attended] for attended in attends],
        "up_block_types": [list(UP)[attended] for attended in attends[::-1]],
        "only_cross_attention": network["attention"] == "text",
        "mid_block_only_cross_attention": None,
        "block_out_channels": widths,
        "layers_per_block": network["blocks"],
        "resnet_out_scale_factor": scale,
        "mid_block_scale_factor": scale,
        "dropout": network["dropout"],
        "act_fn": network["activation"],
        "norm_num_groups": network["groups"],
        "norm_eps": network["norm_eps"],
        "cross_attention_dim": projection or network["text_width"],
        "encoder_hid_dim": network["text_width"] if projection else None,
        "encoder_hid_dim_type": "text_proj" if projection else None,
        "attention_head_dim": network["head_channels"],
        "class_embed_type": "timestep" if large else None,
        "addition_embed_type_num_heads": network["pool_heads"],
        "resnet_skip_time_act": large,
        "time_embedding_dim": network["embedding_width"],
        "time_embedding_act_fn": network["activation"] if large else None,
    }
    threshold = sampling["thresholding"]
    variance = {value: key for key, value in reversed(VARIANCES.items())}.get(sampling["ddpm_variance"])
    if variance is None or (variance == "learned_range") > stage["learned_variance"]:
        raise WeightsError(f"{name} samples with ddpm_variance {sampling['ddpm_variance']}, which diffusers cannot say")
    scheduler = _ddpm(stage["schedule"]) | {
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[stage["prediction"]],
        "variance_type": variance,
        "thresholding": threshold["kind"] == "dynamic",
        "clip_sample": threshold["kind"] != "none",
        "dynamic_thresholding_ratio": threshold["percentile"],
        "sample_max_value": threshold["max_value"],
    }
    configs = {"unet": unet, "scheduler": scheduler}
    return configs | ({"image_noising_scheduler": _ddpm(stage["augmentation"]["schedule"])} if large else {})


def _ddpm(table: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {ours: theirs for theirs, ours in TABLES.items()}
    return {key: value for key, (_, value) in FIXED_SCHEDULER.items()} | {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": table["steps"],
        "beta_schedule": kinds[table["kind"]],
        "beta_start": table["beta_start"],
        "beta_end": table["beta_end"],
    }
