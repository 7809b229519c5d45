"""Muon: orthogonal steps for matrices, AdamW's for the rest, and runs that resume bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cascade.training.loop import Loop, LoopConfig
from cascade.training.muon import Muon, orthogonalized
from cascade.training.optimizers import SMALLEST_MATRIX, make_optimizer
from cascade.training.schedule import Budget

LOOP = LoopConfig(
    optimizer="muon", learning_rate=5e-3, warmup_steps=4, bf16=False, log_every=1, checkpoint_minutes=1e9, ema_decay=0.9
)


class Network(nn.Module):
    """Something of everything: an embedding, a kernel, matrices, a small one, gains and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(80, 64)
        self.kernel = nn.Conv1d(64, 96, 3, padding=1)
        self.norm = nn.LayerNorm(96)
        self.matrix = nn.Linear(96, 64)
        self.small = nn.Linear(64, 3)
        self.tied = nn.Linear(64, 80, bias=False)
        self.tied.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.kernel(self.words(ids).transpose(1, 2)).transpose(1, 2)
        return self.small(self.matrix(self.norm(x)).relu()).mean(dim=1)


class Counting:
    """A task: of 4 words in a line, how many are low, middle and high? The whole line is drawn by the step."""

    batch_size = 32

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = Network()

    def batch(self, step: int, rows: range) -> Tensor:
        return torch.randint(80, (32, 4), generator=torch.Generator().manual_seed(step))[rows.start : rows.stop]

    def loss(self, ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        wanted = torch.stack([(ids % 3 == k).float().sum(dim=1) for k in range(3)], dim=1)
        return (self.model(ids) - wanted).square().mean(), {}


def state(loop: Loop) -> dict[str, Tensor]:
    """Everything that a run consists of."""
    found = {f"model.{name}": p.detach().clone() for name, p in loop.model.named_parameters()}
    found |= {f"ema.{name}": weight.clone() for name, weight in loop.ema.weights.items()}
    for name, p in loop.model.named_parameters():
        found |= {f"optimizer.{name}.{key}": value.clone() for key, value in loop.optimizer.state[p].items()}
    return found


def made(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    return make_optimizer(
        model, config.optimizer, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64), (96, 1000), (130, 70)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_become_one_or_nearly(shape: tuple[int, int], scale: float) -> None:
    matrix = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrix)
    assert found.shape == matrix.shape
    assert found.dtype == matrix.dtype
    values = torch.linalg.svdvals(found)
    if shape[0] == shape[1]:  # its smallest singular values are next to nothing: five iterations do not bring all up
        assert (values < 0.6).float().mean() < 0.1
        values = values[values >= 0.6]
    assert values.min() >= 0.6
    assert values.max() <= 1.3


def test_the_directions_are_kept() -> None:
    """The result has the singular vectors of what was given: U V^T."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(n, 64, generator=generator))[0] for n in (80, 120))
    matrix = u @ torch.diag(torch.logspace(-1.3, 0, 64)) @ v.T
    found = u.T @ orthogonalized(matrix) @ v
    assert found.diagonal().min() > 0.6
    assert (found - torch.diag(found.diagonal())).abs().max() < 0.05
    torch.testing.assert_close(orthogonalized(matrix.T), orthogonalized(matrix).T)
    assert orthogonalized(torch.zeros(3, 5)).eq(0).all()


def test_which_parameters_are_matrices() -> None:
    model = Network()
    model.norm.bias.requires_grad_(False)
    optimizer = made(model, LOOP)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = {group["matrices"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert kinds[True] == {"kernel.weight", "matrix.weight"}
    assert kinds[False] == {
        "words.weight",  # an embedding, tied or not
        "kernel.bias",
        "norm.weight",
        "matrix.bias",
        "small.weight",
        "small.bias",
    }
    decays = {group["matrices"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {True: LOOP.weight_decay, False: 0.0}


@pytest.mark.parametrize(
    ("module", "matrix"),
    [
        (nn.Linear(SMALLEST_MATRIX, SMALLEST_MATRIX, bias=False), True),
        (nn.Linear(SMALLEST_MATRIX - 1, 500, bias=False), False),
        (nn.Linear(500, SMALLEST_MATRIX - 1, bias=False), False),
        (nn.Conv2d(8, SMALLEST_MATRIX, 3, bias=False), True),  # 64 rows of 72
        (nn.Conv2d(4, SMALLEST_MATRIX, 3, bias=False), False),  # of 36
        (nn.Embedding(100, 100), False),
    ],
)
def test_small_ones_and_embeddings_are_none(module: nn.Module, matrix: bool) -> None:
    (group,) = made(module, LOOP).param_groups
    assert group["matrices"] is matrix


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_rest_steps_as_adamw_does(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7,), (5, 6), (2, 3, 4))]
    theirs = copy.deepcopy(ours)
    muon = Muon([{"params": ours, "weight_decay": decay}], 1e-2, betas=(0.9, 0.99), eps=1e-8)
    adamw = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=decay)
    for step in range(12):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = 1e-2 / (1 + step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator) * 10 ** (step - 6)
            b.grad = a.grad.clone()
        muon.step()
        adamw.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_matrix_steps_along_its_orthogonalized_momentum() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 16, 3, 3, generator=generator)
    gradients = [torch.randn(start.shape, generator=generator) for _ in range(3)]
    parameter = nn.Parameter(start.clone())
    muon = Muon([{"params": [parameter], "matrices": True, "weight_decay": 0.1}], 1e-2, momentum=0.8)
    wanted, momentum = start, torch.zeros_like(start)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        muon.step()
        momentum = 0.8 * momentum + 0.2 * gradient
        nesterov = (0.2 * gradient + 0.8 * momentum).flatten(1)
        step = 0.2 * 144**0.5 * orthogonalized(nesterov).view_as(start)
        wanted = (1 - 1e-2 * 0.1) * wanted - 1e-2 * step
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=2e-3 * 1e-2 * 144**0.5)
        assert step.square().mean().sqrt() == pytest.approx(0.2, abs=0.05)  # as large as AdamW's usually are


def test_a_parameter_without_a_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(64, 64))
    muon = Muon([{"params": [used]}, {"params": [unused], "matrices": True, "weight_decay": 0.5}], 0.1)
    used.grad = torch.ones(4)
    muon.step()
    assert unused.eq(1).all()
    assert used.lt(1).all()


def test_a_small_regression_is_learned(tmp_path: Path) -> None:
    task = Counting()
    before = sum(task.loss(task.batch(step, range(32)))[0].item() for step in range(1000, 1010)) / 10
    Loop(task, LOOP, tmp_path).run(Budget(steps=150))
    after = sum(task.loss(task.batch(step, range(32)))[0].item() for step in range(1000, 1010)) / 10
    assert before > 1
    assert after < 0.1 * before


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, bf16: bool) -> None:
    settings = replace(LOOP, bf16=bf16)

    class Killed(BaseException):
        """Stands for a SIGKILL, which no handler sees."""

    class Dies(Counting):
        """Saves at step 3 and dies at step 5."""

        save: Callable[[], None]

        def batch(self, step: int, rows: range) -> Tensor:
            if step == 3:
                self.save()
            if step == 5:
                raise Killed
            return super().batch(step, rows)

    whole = Loop(Counting(), settings, tmp_path / "whole")
    whole.run(Budget(steps=8))
    dying = Dies()
    loop = Loop(dying, settings, tmp_path / "cut")
    dying.save = loop.save
    with pytest.raises(Killed):
        loop.run(Budget(steps=8))
    again = Loop(Counting(), settings, tmp_path / "cut")
    assert again.resume()
    assert again.progress.steps == 3
    again.run(Budget(steps=8))
    found, wanted = state(again), state(whole)
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])] == []
    assert {"optimizer.matrix.weight.momentum", "optimizer.small.weight.exp_avg_sq"} <= found.keys()
    assert found["optimizer.small.weight.step"] == 8
    assert not torch.equal(found["model.matrix.weight"], Counting().model.matrix.weight)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer 'sgd': expected one of adamw, adafactor, muon"):
        LoopConfig(optimizer="sgd")  # type: ignore[arg-type]


def test_the_optimizer_is_the_one_that_is_asked_for() -> None:
    assert type(made(Network(), replace(LOOP, optimizer="adamw"))) is torch.optim.AdamW
    assert type(made(Network(), LOOP)) is Muon
    assert LoopConfig().optimizer == "adamw"
