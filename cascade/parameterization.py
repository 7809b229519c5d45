"""What a network predicts (eps, x or v), what it is trained towards, and how its errors are weighted.

With z = alpha x + sigma eps and v = alpha eps - sigma x (progressive distillation, section 4) the three predictions
carry the same information; their squared errors differ by a factor of the noise level alone:

    |eps - eps'|^2 = e^logsnr |x - x'|^2        |v - v'|^2 = (1 + e^logsnr) |x - x'|^2
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

Prediction = Literal["eps", "x", "v"]
WeightName = Literal["eps_mse", "x_mse", "v_mse", "truncated_snr", "min_snr", "sigmoid"]


def target(prediction: Prediction, x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The regression target for clean images x0 noised by eps."""
    if prediction == "eps":
        return eps
    return x0 if prediction == "x" else alpha * eps - sigma * x0


def to_x0(prediction: Prediction, output: Tensor, z: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The clean image a network's output stands for, given its noisy input z."""
    if prediction == "eps":
        return (z - sigma * output) / alpha
    return output if prediction == "x" else alpha * z - sigma * output


def _log_error_ratio(prediction: Prediction, logsnr: Tensor) -> Tensor:
    """log of |prediction error|^2 / |x0 error|^2."""
    if prediction == "eps":
        return logsnr
    return torch.zeros_like(logsnr) if prediction == "x" else softplus(logsnr)


@dataclass(frozen=True)
class LossWeight:
    """The weight of the squared x0 error at a noise level.

    eps_mse        SNR                    plain MSE on eps (DDPM, Imagen)
    x_mse          1                      plain MSE on x0
    v_mse          SNR + 1                plain MSE on v (progressive distillation)
    truncated_snr  max(SNR, 1)            (progressive distillation, eq. 9)
    min_snr        min(SNR, gamma)        (Hang et al. 2023; gamma 5)
    sigmoid        e^b sigmoid(logsnr - b)    an eps-weight of sigmoid(b - logsnr) (SiD2, section 3)
    """

    name: WeightName = "v_mse"
    gamma: float = 5.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in get_args(WeightName):
            raise ValueError(f"unknown loss weight {self.name!r}: choose one of {', '.join(get_args(WeightName))}")

    def on_x0(self, logsnr: Tensor) -> Tensor:
        """log of the weight on |x0 - x0'|^2."""
        if self.name == "eps_mse":
            return logsnr
        if self.name == "x_mse":
            return torch.zeros_like(logsnr)
        if self.name == "v_mse":
            return softplus(logsnr)
        if self.name == "truncated_snr":
            return logsnr.clamp(min=0)
        if self.name == "min_snr":
            return logsnr.clamp(max=torch.tensor(self.gamma).log().item())
        return self.bias + logsigmoid(logsnr - self.bias)

    def __call__(self, prediction: Prediction, logsnr: Tensor) -> Tensor:
        """The factor on the squared error of the network's own prediction, in logs so that neither end overflows."""
        return torch.exp(self.on_x0(logsnr) - _log_error_ratio(prediction, logsnr))
