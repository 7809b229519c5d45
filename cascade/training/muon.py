"""Muon: steps of orthogonal direction for matrices (Jordan et al. 2024), AdamW for the rest, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cascade.training.distributed import full, like
from cascade.training.precision import computes_bf16

# Jordan et al.: a quintic whose iterates bring every singular value near 1, as steeply at 0 as it can.
QUINTIC = (3.4445, -4.7750, 2.0315)
# Of AdamW, as in simple diffusion: where much weighs little in the loss, gradients of gains and biases are below 1e-8.
EPS = 1e-12


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrix with singular values near 1 (0.7 to 1.2), by Newton-Schulz iterations; R C -> R C.

    In bf16, which is enough, where the device computes in it.
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if computes_bf16(matrix.device.type) else matrix.float()
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Two kinds of parameter groups, told apart by ``"matrices": bool``; both take lr and weight_decay.

    Matrices (kernels are flattened to one row per output channel) step along the orthogonalized Nesterov momentum of
    their gradient, so scaled that its entries are as large as AdamW's usually are (Liu et al. 2025, 0.2 sqrt(longer
    side)): the two share one learning rate. Everything else takes AdamW's step with ``betas``.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = EPS,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "matrices": False})
        self.momentum, self.betas, self.eps = momentum, betas, eps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            step = self._matrix_step if group["matrices"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(step(parameter), alpha=group["lr"])

    def _matrix_step(self, parameter: nn.Parameter) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - self.momentum)
        direction = full(gradient.lerp(state["momentum"], self.momentum)).flatten(1)  # every process does all of it
        step = (0.2 * math.sqrt(max(direction.shape)) * orthogonalized(direction)).view(parameter.shape)
        return like(parameter, step)

    def _adam_step(self, parameter: nn.Parameter) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = self.betas
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = state["exp_avg"] / (1 - first ** state["step"])
        return mean / ((state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt() + self.eps)
