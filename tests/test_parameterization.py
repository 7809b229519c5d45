"""cascade/parameterization.py: eps, x and v say the same, and loss weights are their closed forms on each of them."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascade.denoiser import Denoiser
from cascade.parameterization import LossWeight, Prediction, WeightName, target, to_x0
from cascade.schedules import alpha_sigma

PREDICTIONS: list[Prediction] = ["eps", "x", "v"]
GAMMA, BIAS = 5.0, -3.0
WEIGHTS: tuple[WeightName, ...] = get_args(WeightName)


def close(found: Tensor, wanted: Tensor, error: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=error, atol=error)


# Targets


@given(logsnr=st.floats(-12, 12), seed=st.integers(0, 1000))
def test_every_prediction_stands_for_the_same_x0(logsnr: float, seed: int) -> None:
    """float32 where e^(-logsnr / 2), by which eps is amplified, leaves digits; float64 on the whole range."""
    generator = torch.Generator().manual_seed(seed)
    for dtype, span, error in ((torch.float64, 12, 1e-10), (torch.float32, 6, 1e-5)):
        if abs(logsnr) > span:
            continue
        x0, eps = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
        for level in (logsnr, torch.full((2, 1, 1, 1), logsnr, dtype=dtype)):
            alpha, sigma = alpha_sigma(level)
            z = alpha * x0 + sigma * eps
            for prediction in PREDICTIONS:
                close(to_x0(prediction, target(prediction, x0, eps, alpha, sigma), z, alpha, sigma), x0, error)


def test_targets_are_what_they_are_called() -> None:
    x0, eps = torch.randn(2, 2, 3, 4, 4)
    assert target("eps", x0, eps, 0.8, 0.6) is eps
    assert target("x", x0, eps, 0.8, 0.6) is x0
    close(target("v", x0, eps, 0.8, 0.6), 0.8 * eps - 0.6 * x0, 1e-6)


@given(logsnr=st.floats(-12, 12))
def test_errors_of_the_predictions_differ_by_the_noise_level_alone(logsnr: float) -> None:
    alpha, sigma = alpha_sigma(logsnr)
    z, ours, theirs = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)

    def error(prediction: Prediction) -> Tensor:
        """The squared error on x0 when outputs `ours` and `theirs` are read as this prediction."""
        return (to_x0(prediction, ours, z, alpha, sigma) - to_x0(prediction, theirs, z, alpha, sigma)).square()

    own = (ours - theirs).square()
    close(own, math.exp(logsnr) * error("eps"), 1e-9)
    close(own, error("x"), 1e-9)
    close(own, (1 + math.exp(logsnr)) * error("v"), 1e-9)


# Loss weights


def closed_form(name: WeightName, snr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight on the squared error of x0, of eps and of v, each written out."""
    one = torch.ones_like(snr)
    b = math.exp(BIAS)  # e^b sigmoid(logsnr - b) = e^b snr / (snr + e^b)
    return {
        "eps_mse": (snr, one, snr / (1 + snr)),
        "x_mse": (one, 1 / snr, 1 / (1 + snr)),
        "v_mse": (1 + snr, 1 + 1 / snr, one),
        "truncated_snr": (
            torch.maximum(snr, one),
            torch.maximum(one, 1 / snr),
            torch.maximum(snr, one) / (1 + snr),
        ),
        "min_snr": (
            snr.clamp(max=GAMMA),
            (GAMMA / snr).clamp(max=1),
            torch.minimum(snr, GAMMA * one) / (1 + snr),
        ),
        "sigmoid": (b * snr / (snr + b), b / (snr + b), b * snr / (snr + b) / (1 + snr)),
    }[name]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])  # gamma's log is float32
def test_a_weight_is_its_closed_form_on_every_prediction(name: WeightName, dtype: torch.dtype, error: float) -> None:
    logsnr = torch.linspace(-12, 12, 97, dtype=dtype)
    on_x0, on_eps, on_v = closed_form(name, logsnr.double().exp())
    weight = LossWeight(name, gamma=GAMMA, bias=BIAS)
    for prediction, wanted in (("x", on_x0), ("eps", on_eps), ("v", on_v)):
        found = weight(prediction, logsnr)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=error, atol=0)
    torch.testing.assert_close(weight.on_x0(logsnr).double(), on_x0.log(), rtol=error, atol=error)


@pytest.mark.parametrize("name", WEIGHTS)
@given(logsnr=st.floats(-12, 12))
def test_the_weighted_loss_does_not_depend_on_the_prediction(name: WeightName, logsnr: float) -> None:
    alpha, sigma = alpha_sigma(logsnr)
    z, x0, x0_hat = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)

    def loss(prediction: Prediction) -> Tensor:
        outputs = [target(prediction, x, (z - alpha * x) / sigma, alpha, sigma) for x in (x0, x0_hat)]
        weight = LossWeight(name)(prediction, torch.tensor(logsnr, dtype=torch.float64))
        return weight * (outputs[0] - outputs[1]).square().mean()

    torch.testing.assert_close(loss("eps"), loss("x"), rtol=1e-9, atol=0)
    torch.testing.assert_close(loss("v"), loss("x"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_finite_and_positive_at_both_ends(name: WeightName, prediction: Prediction) -> None:
    found = LossWeight(name)(prediction, torch.tensor([-80.0, -20.0, 20.0, 80.0]))
    assert found.isfinite().all()
    assert (found > 0).all()


@pytest.mark.parametrize(
    ("name", "prediction", "at_noise", "at_clean"),
    [
        ("eps_mse", "eps", 1, 1),
        ("eps_mse", "v", 0, 1),
        ("x_mse", "x", 1, 1),
        ("x_mse", "v", 1, 0),
        ("v_mse", "v", 1, 1),
        ("v_mse", "x", 1, math.inf),
        ("truncated_snr", "v", 1, 1),
        ("min_snr", "x", 0, GAMMA),
        ("min_snr", "v", 0, 0),
        ("sigmoid", "eps", 1, 0),
        ("sigmoid", "x", 0, 1),
    ],
)
def test_limits_are_exact_where_the_snr_overflows(
    name: WeightName, prediction: Prediction, at_noise: float, at_clean: float
) -> None:
    found = LossWeight(name)(prediction, torch.tensor([-300.0, 300.0]))
    assert found.tolist() == pytest.approx([at_noise, at_clean], rel=1e-6, abs=1e-30)


def test_the_default_is_plain_mse_on_v() -> None:
    assert torch.equal(LossWeight()("v", torch.linspace(-20, 20, 9)), torch.ones(9))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown loss weight 'snr': choose one of eps_mse, x_mse, v_mse"):
        LossWeight("snr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='prediction must be "eps", "x" or "v", got \'x0\''):
        Denoiser(torch.nn.Identity(), None, "x0")  # type: ignore[arg-type]
