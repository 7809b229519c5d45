"""DeepFloyd IF in diffusers' pipeline and in Cascade's, of one network with random weights, given the same embeddings:
the two sides of benchmarks/deepfloyd.py.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from cascade import Pipeline
from cascade.build import build_stage, deepfloyd_tensors
from cascade.chain import Cascade
from cascade.config import decode
from cascade.randomness import Draws
from cascade.stage import StageConfig
from conditioning.text import TextEmbedding
from weights.deepfloyd import stage_config

Network = Literal["I-M", "I-L", "I-XL", "II-M", "II-L"]
CHANNELS: dict[Network, list[int]] = {
    "I-M": [192, 384, 576, 768],
    "I-L": [320, 640, 960, 1280],
    "I-XL": [704, 1408, 2112, 2816],
    "II-M": [96, 192, 384, 576, 768],
    "II-L": [160, 320, 640, 960, 1280],
}
GUIDANCE = {"I": 7.0, "II": 4.0}
TOKENS, TEXT_WIDTH, HEAD = 77, 4096, 64  # HEAD: channels of one
SCALE = 1.4142271248762552  # by which stage II divides what its blocks put out
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
}


def unet_config(network: Network, divide: int) -> dict[str, Any]:
    """A published network as diffusers describes it, its widths divided."""
    second = network.startswith("II-")
    attends = [False, False, False, True, True] if second else [False, True, True, True]
    most = math.gcd(*(width for width, attended in zip(CHANNELS[network], attends, strict=True) if attended)) // HEAD
    if most % divide:
        raise SystemExit(f"--divide {divide} leaves no whole heads of {HEAD} channels in {network}; try 1 or {most}")
    channels = [width // divide for width in CHANNELS[network]]
    config = {
        "sample_size": 256 if second else 64,
        "in_channels": 6 if second else 3,
        "out_channels": 6,
        "act_fn": "gelu",
        "block_out_channels": channels,
        "layers_per_block": [2, 2, 3, 5, 5] if second else 3,
        "down_block_types": ["SimpleCrossAttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["SimpleCrossAttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in attends[::-1]],
        "only_cross_attention": network == "II-M",
        "attention_head_dim": HEAD,
        "cross_attention_dim": channels[-1],
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": TEXT_WIDTH // divide // 64 * 64,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 64,
        "resnet_time_scale_shift": "scale_shift",
    }
    if second:
        config |= {
            "class_embed_type": "timestep",
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": SCALE,
            "mid_block_scale_factor": SCALE,
            "time_embedding_act_fn": "gelu",
            "time_embedding_dim": channels[-1],
        }
    return config


class Contest:
    """The same network in diffusers' pipeline and in ours, and the same embeddings for both."""

    def __init__(self, network: Network, divide: int, side: int, dtype: torch.dtype, device: torch.device) -> None:
        import diffusers
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        self.second, self.side, self.dtype, self.device = network.startswith("II-"), side, dtype, device
        self.scale = GUIDANCE["II" if self.second else "I"]
        config = unet_config(network, divide)
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        with device:
            unet = UNet2DConditionModel(**config).eval()
        torch.set_default_dtype(torch.float32)

        own: dict[str, Any] = SCHEDULER | {"sample_max_value": 1.0 if self.second else 1.5}
        parts: dict[str, Any] = {"unet": unet, "scheduler": diffusers.DDPMScheduler(**own)}
        stored = {"unet": config, "scheduler": own | {"_class_name": "DDPMScheduler"}}
        absent = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
        cls: Any = diffusers.IFPipeline
        if self.second:
            cls = diffusers.IFSuperResolutionPipeline
            parts["image_noising_scheduler"] = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
            stored["image_noising_scheduler"] = {"beta_schedule": "squaredcos_cap_v2", "_class_name": "DDPMScheduler"}
        self.diffusers: Any = cls(**parts, **dict.fromkeys(absent), requires_safety_checker=False)
        self.diffusers.set_progress_bar_config(disable=True)

        with torch.device("meta"):
            stage = build_stage(decode(StageConfig, stage_config(stored, network), network))
        stored_tensors: Any = StateDict(unet)
        tensors = dict(deepfloyd_tensors(stage.config, stored_tensors))
        stage.denoiser.network.load_state_dict(tensors, assign=True)
        self.stage = stage
        self.cascade = Pipeline(Cascade([stage]))
        self.cascade.set_progress_bar_config(disable=True)

    def inputs(self, batch: int) -> None:
        """Set the embeddings of a batch, and what stage II enlarges."""
        generator = torch.Generator().manual_seed(1)
        width = self.stage.denoiser.network.text_width or 0
        both = torch.randn(2 * batch, TOKENS, width, generator=generator).to(self.device, self.dtype)
        mask = torch.ones(batch, TOKENS, dtype=torch.bool, device=self.device)
        self.batch = batch
        self.text, self.null = (TextEmbedding(half, mask, "kept") for half in both.chunk(2))
        low = self.side // 4
        self.low_res = torch.rand(batch, 3, low, low, generator=generator) if self.second else None

    def by_diffusers(self, steps: int) -> Tensor:
        known: dict[str, Any] = {} if self.low_res is None else {"image": self.low_res * 2 - 1, "noise_level": 250}
        return self.diffusers(
            prompt_embeds=self.text.tokens,
            negative_prompt_embeds=self.null.tokens,
            num_inference_steps=steps,
            guidance_scale=self.scale,
            height=self.side,
            width=self.side,
            output_type="pt",
            **known,
        ).images

    def by_cascade(self, steps: int) -> Tensor:
        """Images in [0, 1]."""
        return self.cascade(
            prompt_embeds=self.text,
            negative_prompt_embeds=self.null,
            num_inference_steps=steps,
            guidance_scale=self.scale,
            height=self.side,
            width=self.side,
            image=self.low_res,
            aug_level=0.25 if self.second else None,
            seed=0,
            output_type="pt",
        ).images

    def difference(self, steps: int) -> float:
        """Of the images that both draw from the noise of `Draws`."""
        draws = Draws(list(range(self.batch)), 0)
        purposes = iter(("start", "augmentation") if self.second else ("start",))

        def randn_tensor(shape: Sequence[int], *, device: Any = None, dtype: Any = None, **_: Any) -> Tensor:
            return draws.normal(next(purposes, "steps"), tuple(shape[1:])).to(device, dtype)

        home = "diffusers.pipelines.deepfloyd_if"
        homes = (f"{home}.pipeline_if", f"{home}.pipeline_if_superresolution", "diffusers.schedulers.scheduling_ddpm")
        with ExitStack() as stack:
            for module in homes:
                stack.enter_context(patch(f"{module}.randn_tensor", randn_tensor))
            wanted = self.by_diffusers(steps).float().cpu().clamp(-1, 1)
        found = self.by_cascade(steps).float() * 2 - 1
        return ((found - wanted).abs().max() / wanted.abs().max()).item()

    def compile(self) -> None:
        self.diffusers.unet.compile(dynamic=False)
        self.stage.denoiser.network.compile(dynamic=False)


class StateDict:
    """A network's tensors as `weights.shards.StoredTensors` gives them."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.tensors = network.state_dict()

    def read(self, name: str) -> Tensor:
        return self.tensors[name]
