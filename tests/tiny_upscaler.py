"""A tiny Stable Diffusion upscaler with random weights, built by diffusers: it enlarges by 2 in place of 4."""

from pathlib import Path
from typing import Any

import torch


def save_tiny_upscaler(folder: Path, **options: Any) -> Any:
    """diffusers' pipeline, which was saved with those options."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=7,
            out_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=8,
            num_class_embeds=1000,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=[8, 16],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.08333,
        )
        text = CLIPTextConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=len(tokens),
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
        )
        encoder = CLIPTextModel(text)
    pipe = diffusers.StableDiffusionUpscalePipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=16),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        max_noise_level=350,
    )
    pipe.save_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe
