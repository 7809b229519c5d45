"""Where bfloat16 is worth computing in."""

from functools import cache

import torch


@cache
def computes_bf16(device_type: str) -> bool:
    """Whether "cpu" or "cuda" multiplies bfloat16 matrices itself.

    A CPU without AVX-512 (or ARM's like) emulates it, far more slowly than it computes in float32; so do GPUs before
    Ampere.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return True
