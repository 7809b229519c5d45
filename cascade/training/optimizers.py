"""Which optimizer, for which parameters."""

from typing import Literal, get_args

import torch
from torch import nn

from cascade.training.adafactor import Adafactor
from cascade.training.muon import EPS, Muon

OptimizerName = Literal["adamw", "adafactor", "muon"]
OPTIMIZERS = get_args(OptimizerName)
SMALLEST_MATRIX = 64  # rows and columns from which a parameter is worth an orthogonal step


def make_optimizer(
    model: nn.Module, name: OptimizerName, lr: float, *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW; Adafactor, which keeps least state; or Muon for the matrices and kernels of at least SMALLEST_MATRIX rows
    and columns, and AdamW for the rest. betas are AdamW's.
    """
    if name == "muon":
        return Muon(_matrix_groups(model, weight_decay), lr, betas=betas)
    groups = parameter_groups(model, weight_decay)
    if name == "adafactor":
        return Adafactor(groups, lr)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=EPS, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay matrices and kernels; leave gains, biases and embeddings of one dimension alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _matrix_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices, rest = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            large = parameter.ndim > 1 and min(parameter.flatten(1).shape) >= SMALLEST_MATRIX
            (matrices if large and id(parameter) not in embeddings else rest).append(parameter)
    groups = [{"params": matrices, "matrices": True, "weight_decay": weight_decay}, {"params": rest}]
    return [group for group in groups if group["params"]]
