"""Training steps of imagen-pytorch's own trainer, run by the Python of its environment, on request.

Its settings: {"unet": of its Unet, "batch": 8, "tokens": 32, "precision": "float32", "patched": false}.

A step is `ImagenTrainer.forward` and `ImagenTrainer.update` on a batch that was made beforehand. What needs the network
when imported, or a torchvision built for this torch, is given what it asks for; neither takes part in training.
"""

# pyright: reportMissingImports=false
import json
import sys
import types
import warnings
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workers.on_request import Finished, Requests

SIDE = 64


def import_imagen_pytorch() -> types.ModuleType:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # the registry's is built for CUDA, and does not find its operators in a torch for CPUs
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    # It asks the hub for the width of T5 while being imported.
    config: Any = transformers.T5Config
    config.from_pretrained = lambda name, **rest: config(d_model=768)
    import imagen_pytorch

    return imagen_pytorch


def attend(layer: Any, x: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """imagen-pytorch's cosine attention by PyTorch's fused kernel; keys and values B N d or B h N d."""
    batch, count = x.shape[:2]
    query = layer.to_q(x).view(batch, count, layer.heads, -1).transpose(1, 2)  # B h L d
    key, value = torch.cat(keys, dim=-2), torch.cat(values, dim=-2)
    unit = torch.nn.functional.normalize
    query, key = unit(query, dim=-1) * layer.q_scale, unit(key, dim=-1) * layer.k_scale
    if key.ndim == 3:  # one for all heads
        key, value = (part[:, None].expand(-1, layer.heads, -1, -1) for part in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query.to(value.dtype), key.to(value.dtype), value, scale=layer.scale
    )
    return layer.to_out(out.transpose(1, 2).flatten(2))


def self_attention(layer: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    x = layer.norm(x)
    key, value = layer.to_kv(x).chunk(2, dim=-1)
    null_key, null_value = layer.null_kv[:, None, None].expand(2, len(x), 1, -1)
    text = [] if context is None else [layer.to_context(context).chunk(2, dim=-1)]
    return attend(
        layer, x, [*(pair[0] for pair in text), null_key, key], [*(pair[1] for pair in text), null_value, value]
    )


def cross_attention(layer: Any, x: Tensor, context: Tensor) -> Tensor:
    x, context = layer.norm(x), layer.norm_context(context)
    key, value = (
        part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in layer.to_kv(context).chunk(2, dim=-1)
    )
    null_key, null_value = layer.null_kv[:, None, None, None].expand(2, len(x), layer.heads, 1, -1)
    return attend(layer, x, [null_key, key], [null_value, value])


def patch(module: types.ModuleType) -> None:
    """Fused attention, where the U-Net attends without a mask, which is everywhere but in pooling the text."""
    module.Attention.forward = lambda layer, x, context=None, mask=None, attn_bias=None: self_attention(
        layer, x, context
    )
    module.CrossAttention.forward = lambda layer, x, context, mask=None: cross_attention(layer, x, context)


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    package = import_imagen_pytorch()
    requests = Requests()
    torch.manual_seed(0)
    unet = package.Unet(**settings["unet"])
    width, batch, tokens = settings["unet"]["text_embed_dim"], settings["batch"], settings["tokens"]
    images = torch.rand(batch, 3, SIDE, SIDE)
    text, mask = torch.randn(batch, tokens, width), torch.ones(batch, tokens, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(images[:1], torch.zeros(1), text_embeds=text[:1], text_mask=mask[:1])
    if settings["patched"]:
        patch(package.imagen_pytorch)  # after counting: torch counts nothing in the CPU's fused attention
        unet = unet.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    imagen = package.Imagen(
        (unet,), image_sizes=SIDE, text_embed_dim=width, pred_objectives="v", auto_normalize_img=True
    )
    precision = {"float32": None, "bfloat16": "bf16"}[settings["precision"]]
    trainer = package.ImagenTrainer(imagen, lr=1e-4, precision=precision, verbose=False)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    requests.answer(flops=counter.get_total_flops(), parameters=parameters)
    with suppress(Finished):
        while True:
            requests.wait()
            trainer(images, text_embeds=text, text_masks=mask, unet_number=1)
            trainer.update(unet_number=1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
