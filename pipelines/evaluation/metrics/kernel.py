"""The kernel distance, KID with Inception's features: the squared maximum mean discrepancy under a polynomial kernel.

    k(a, b) = (a . b / D + 1)^3                         (Binkowski et al. 2018, section 4)

Its estimate has no bias, whatever the number of images, and may therefore come out below zero.
N images, D features of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.evaluation.metrics.frechet import check_features

BLOCK = 4096  # rows of the kernel matrix at a time


class KernelDistance(NamedTuple):
    """The mean over subsets, and the standard deviation between them."""

    mean: float
    sd: float


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """The unbiased estimate from all of N D and M D features (Gretton et al. 2012, eq. 3)."""
    for features in (one, other):
        check_features(features, least=2)
    return _distance(one.double(), other.double())


def kernel_distance_by_subsets(
    one: Tensor, other: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The usual KID: over random subsets of `size` images of each set.

    Raises ValueError where a set has no more images than a subset: all subsets would be one, and agree.
    """
    count = min(len(one), len(other))
    if subsets < 1 or not 2 <= size < count:
        raise ValueError(
            f"{subsets} subsets of {size} images out of {count}; expected 1 or more, of 2 to {count - 1} images"
        )
    for features in (one, other):
        check_features(features)
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]].double()

    found = torch.tensor([_distance(subset(one), subset(other)) for _ in range(subsets)], dtype=torch.float64)
    return KernelDistance(found.mean().item(), found.std(correction=0).item())


def _distance(one: Tensor, other: Tensor) -> float:
    n, m = len(one), len(other)
    within = _kernel_sum(one, one) - _kernel(one.square().sum(dim=1), one.shape[1]).sum()  # without k(a, a)
    within_other = _kernel_sum(other, other) - _kernel(other.square().sum(dim=1), other.shape[1]).sum()
    between = _kernel_sum(one, other)
    return (within / (n * (n - 1)) + within_other / (m * (m - 1)) - 2 * between / (n * m)).item()


def _kernel(products: Tensor, features: int) -> Tensor:
    return (products / features + 1) ** 3


def _kernel_sum(one: Tensor, other: Tensor) -> Tensor:
    return torch.stack([_kernel(rows @ other.T, other.shape[1]).sum() for rows in one.split(BLOCK)]).sum()
