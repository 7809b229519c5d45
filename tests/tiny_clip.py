"""A tiny real CLIP with its tokenizer, in transformers' layout."""

from pathlib import Path

import torch


def save_tiny_clip(folder: Path) -> Path:
    """Width 8, images of 30 px, 16 tokens, of which every letter is one; random weights."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    CLIPTokenizer(vocabulary, []).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 30, "patch_size": 10}, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return folder
