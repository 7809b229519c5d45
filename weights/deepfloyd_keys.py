"""What DeepFloyd IF's configs hold, as diffusers writes them: the keys, their defaults there, and what of them is
implemented.

A key that a config leaves out has the default of diffusers' class.
"""

from __future__ import annotations

from typing import Any

# The pipelines that share a stage's network: text to image, image variation, inpainting.
BASE = ("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline")
SUPER_RESOLUTION = (
    "IFSuperResolutionPipeline",
    "IFImg2ImgSuperResolutionPipeline",
    "IFInpaintingSuperResolutionPipeline",
)

# UNet2DConditionModel: the keys that are mapped, with diffusers' defaults.
UNET: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "resnet_out_scale_factor": 1.0,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": None,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "resnet_skip_time_act": False,
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
}
# The keys that change the network and must have one value: (diffusers' default, what is implemented).
FIXED: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "time_embedding_type": ("positional", "positional"),
    "time_cond_proj_dim": (None, None),
    "timestep_post_act": (None, None),
    "addition_embed_type": (None, "text"),
    "cross_attention_norm": (None, "group_norm"),
    "num_class_embeds": (None, None),
    "num_attention_heads": (None, None),
    "class_embeddings_concat": (False, False),
    "attention_type": ("default", "default"),
}
# The keys that change nothing in a network of IF's blocks.
IDLE = {
    "downsample_padding",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "dual_cross_attention",
    "use_linear_projection",
    "upcast_attention",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "encoder_hid_dim_type",  # "text_proj" where encoder_hid_dim is set, which is also its default there
}
DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}  # whether a block attends
UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}

# DDPMScheduler, in the same manner.
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
FIXED_SCHEDULER: dict[str, tuple[Any, Any]] = {
    "trained_betas": (None, None),
    "clip_sample_range": (1.0, 1.0),
    "timestep_spacing": ("leading", "leading"),
    "steps_offset": (0, 0),
    "rescale_betas_zero_snr": (False, False),
}
TABLES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
VARIANCES = {"learned_range": None, "fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0}
