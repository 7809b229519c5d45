"""Small networks and pipelines of DeepFloyd IF with random weights, built by diffusers: the reference of the tests."""

import json
from pathlib import Path
from typing import Any

import torch

from conditioning.text import TextEncoder

TEXT_WIDTH = 24

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": TEXT_WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
}
# What stage II differs in.
LARGE: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 6,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 64,
}


def blocks(*attends: bool) -> dict[str, Any]:
    """Block types of levels with and without attention."""
    kinds = ["SimpleCrossAttn" if attended else "Resnet" for attended in attends]
    down = [f"{kind}{'DownBlock2D' if kind == 'SimpleCrossAttn' else 'DownsampleBlock2D'}" for kind in kinds]
    up = [f"{kind}{'UpBlock2D' if kind == 'SimpleCrossAttn' else 'UpsampleBlock2D'}" for kind in kinds[::-1]]
    return {"down_block_types": down, "up_block_types": up}


# Every value on which IF's published networks differ, and some that only fine-tunes would.
VARIANTS: dict[str, dict[str, Any]] = {
    "I": {},
    "I, widths no power of two": {
        "block_out_channels": [96, 192, 288],
        "cross_attention_dim": 96,
        "attention_head_dim": 32,
        "layers_per_block": 2,
        **blocks(False, True, True),
    },
    "I, silu and other norms": {"act_fn": "silu", "norm_num_groups": 16, "norm_eps": 1e-3, "dropout": 0.1},
    "I, text as it is": {"encoder_hid_dim": None, "encoder_hid_dim_type": None},
    "I, mean and variance fixed": {"out_channels": 3, "time_embedding_dim": 40},
    "II": LARGE,
    "II, layers per level": LARGE
    | {"block_out_channels": [64, 128, 128], "layers_per_block": [1, 2, 3], **blocks(False, False, True)},
    "II, text alone": LARGE
    | {"only_cross_attention": True, "block_out_channels": [96, 192], "cross_attention_dim": 96},
}


def unet_config(**changes: Any) -> dict[str, Any]:
    return SMALL | changes


def unet(config: dict[str, Any]) -> Any:
    """A network with no norm at its default, so that no two tensors could be exchanged unnoticed."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network = UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def scheduler_config(**changes: Any) -> dict[str, Any]:
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "learned_range",
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.95,
        "sample_max_value": 1.5,
    } | changes


def stored_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configs of the components as they stand in files, for `weights.deepfloyd.stage_config`."""
    variance = "learned_range" if config["out_channels"] == 6 else "fixed_small"
    parts = {"unet": config, "scheduler": scheduler_config(variance_type=variance)}
    if config["in_channels"] == 6:
        parts["image_noising_scheduler"] = scheduler_config(thresholding=False)
    return json.loads(json.dumps(parts))


def save_pipeline(folder: Path, config: dict[str, Any], encoder: Any, variant: str | None = None, **more: Any) -> Any:
    """A whole pipeline of a network of that config, with the T5 of ``encoder``, our TextEncoder, saved to disk."""
    import diffusers
    from transformers import T5Tokenizer

    network = unet(config)
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    parts |= {"tokenizer": None, "text_encoder": None, "requires_safety_checker": False}
    if encoder is not None:
        encoder.tokenizer.save(folder / "tokenizer")
        parts |= {"tokenizer": T5Tokenizer.from_pretrained(folder / "tokenizer"), "text_encoder": encoder.model}
    own = {key: value for key, value in scheduler_config().items() if key != "_class_name"}
    cls = diffusers.IFPipeline
    if config["in_channels"] == 6:
        cls = diffusers.IFSuperResolutionPipeline
        own["sample_max_value"] = 1.0
        parts["image_noising_scheduler"] = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    pipe = cls(unet=network, scheduler=diffusers.DDPMScheduler(**own), **parts | more)
    pipe.save_pretrained(folder, variant=variant)
    if encoder is not None:
        encoder.tokenizer.save(folder / "tokenizer")  # spiece.model, which transformers 5 no longer writes
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_t5(text_encoder: TextEncoder, width: int = TEXT_WIDTH) -> TextEncoder:
    """A T5 as wide as the networks expect, with the tokenizer of another."""
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = text_encoder.tokenizer.size
        config = T5Config(vocab_size=size, d_model=width, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        return TextEncoder(T5EncoderModel(config), text_encoder.tokenizer, max_length=77)


def save_both(root: Path, encoder: TextEncoder, **more: Any) -> tuple[Any, Any]:
    """IF-I and IF-II, 16 -> 32 px, the second as II-M with attention to text alone; diffusers' pipelines."""
    text_only = {"only_cross_attention": True, "block_out_channels": [96, 192], "cross_attention_dim": 96}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = save_pipeline(root / "IF-I", unet_config(), encoder, **more)
        return small, save_pipeline(root / "IF-II", unet_config(**LARGE | text_only), encoder, **more)
