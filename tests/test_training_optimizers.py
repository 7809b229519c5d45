"""cascade/training/adafactor.py against torch's own, and what each optimizer keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cascade.training.adafactor import Adafactor
from cascade.training.optimizers import OPTIMIZERS, make_optimizer


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (40,), (64, 3)])
def test_of_a_matrix_or_a_vector_it_makes_what_torchs_does(shape: tuple[int, ...], decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, generator=generator))
    theirs = copy.deepcopy(ours)
    mine = Adafactor([ours], 1e-2, weight_decay=decay)
    torchs = torch.optim.Adafactor([theirs], lr=1e-2, weight_decay=decay)
    for step in range(15):
        ours.grad = torch.randn(shape, generator=generator) * 10 ** (step - 8)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_each_tap_of_a_kernel_is_a_matrix() -> None:
    """A kernel whose taps have equal gradients steps as one matrix does."""
    generator = torch.Generator().manual_seed(0)
    matrix = nn.Parameter(torch.randn(6, 5, generator=generator))
    kernel = nn.Parameter(matrix.detach()[:, :, None, None].repeat(1, 1, 3, 3))
    optimizers = [Adafactor([matrix], 1e-2), Adafactor([kernel], 1e-2)]
    for _ in range(4):
        matrix.grad = torch.randn(6, 5, generator=generator)
        kernel.grad = matrix.grad[:, :, None, None].repeat(1, 1, 3, 3)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernel.detach(), matrix.detach()[:, :, None, None].expand(6, 5, 3, 3))


def test_what_is_kept() -> None:
    """Numbers per parameter: Adam's two moments, Adafactor's rows and columns."""
    kept = {}
    for name in OPTIMIZERS:
        model = nn.Conv2d(128, 128, 3)
        optimizer = make_optimizer(model, name, 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
        model(torch.randn(1, 128, 4, 4)).sum().backward()
        optimizer.step()
        state = [value for p in model.parameters() for value in optimizer.state[p].values()]
        kept[name] = sum(value.numel() for value in state) / sum(p.numel() for p in model.parameters())
    assert kept["adamw"] == pytest.approx(2, abs=0.01)
    assert kept["muon"] == pytest.approx(1, abs=0.01)
    assert kept["adafactor"] < 0.02
