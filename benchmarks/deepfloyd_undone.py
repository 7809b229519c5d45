"""What diffusers does otherwise: each function undoes one thing in a contest's stage, for benchmarks/deepfloyd.py."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from deepfloyd_contest import SCHEDULER, Contest
from torch import Tensor

from cascade.denoiser import Denoiser, ModulationTable, Prepared
from cascade.schedules import alpha_sigma
from conditioning.text import TextEmbedding


@contextmanager
def altered(denoiser: Denoiser, change: Callable[[Prepared], Prepared]) -> Iterator[None]:
    """A denoiser for which ``change`` computes something anew at every step."""
    output = denoiser.output
    with patch.object(denoiser, "output", lambda z, level, prepared: output(z, level, change(prepared))):
        yield


def text_every_step(contest: Contest) -> AbstractContextManager:
    denoiser = contest.stage.denoiser

    def change(prepared: Prepared) -> Prepared:
        both = TextEmbedding.cat([contest.text, contest.null])
        return replace(prepared, text=denoiser.network.text_features(both.tokens, both.visible))

    return altered(denoiser, change)


def modulations_every_step(contest: Contest) -> AbstractContextManager:
    denoiser = contest.stage.denoiser

    def change(prepared: Prepared) -> Prepared:
        both = TextEmbedding.cat([contest.text, contest.null])
        level = torch.full((len(both),), 250.0, device=contest.device) if contest.second else None
        condition = denoiser.network.embed_condition(len(both), both.tokens, both.visible, level, None)
        return replace(prepared, condition=condition, table=ModulationTable(denoiser, condition, ()))

    return altered(denoiser, change)


def whole_quantile(contest: Contest) -> AbstractContextManager:
    """torch.quantile in thresholding, and also where its result is clamped to 1."""

    def threshold(x0: Tensor) -> Tensor:
        s = torch.quantile(x0.abs().flatten(1), SCHEDULER["dynamic_thresholding_ratio"], dim=1)
        s = s.clamp(1, 1.0 if contest.second else 1.5)[:, None, None, None]
        return torch.clamp(x0, -s, s) / s

    return patch("cascade.thresholding.Thresholding.function", lambda self: threshold)


def plain_layout(contest: Contest) -> AbstractContextManager:
    network = contest.stage.denoiser.network

    def lay_out() -> None:
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    return patch.object(contest.stage.denoiser, "lay_out", lay_out)


def plain_norms(contest: Contest) -> AbstractContextManager:
    return patch("cascade.networks.blocks.GroupNorm.forward", torch.nn.GroupNorm.forward)


def scalars_on_the_device(contest: Contest) -> AbstractContextManager:
    """Also the noise, which comes from the host, is waited for."""

    def tensors(logsnr: float) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(value, device=contest.device) for value in alpha_sigma(logsnr))

    stack = ExitStack()
    stack.enter_context(patch("cascade.samplers.alpha_sigma", tensors))
    stack.enter_context(patch.object(Tensor, "pin_memory", lambda self: self))
    return stack


def all_of_them(contest: Contest) -> AbstractContextManager:
    stack = ExitStack()
    for undo in list(UNDONE.values())[:-1]:
        stack.enter_context(undo(contest))
    return stack


UNDONE: dict[str, Callable[[Contest], AbstractContextManager]] = {
    "text: keys, values and their projections at every step": text_every_step,
    "embeddings, and scale and shift of every block, at every step": modulations_every_step,
    "torch.quantile for thresholding": whole_quantile,
    "weights in torch's usual layout": plain_layout,
    "small maps in torch's own group norm": plain_norms,
    "the sampler's numbers on the device": scalars_on_the_device,
    "all of these": all_of_them,
}
