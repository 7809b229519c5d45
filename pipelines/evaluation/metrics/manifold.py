"""Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

The manifold of a set is the union of balls about its feature vectors, each as large as the distance to its k-th nearest
neighbour in the set. Precision is the share of drawn images in the manifold of the real ones, recall the reverse.

N images, D features of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.evaluation.metrics.frechet import check_features

BLOCK = 2048  # rows of the table of distances at a time


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


@dataclass(frozen=True, eq=False)
class Manifold:
    """centres N D, squared_radii N; float64."""

    centres: Tensor
    squared_radii: Tensor

    @staticmethod
    def of(features: Tensor, k: int = 3) -> Manifold:
        """Raises ValueError unless there are more than k images."""
        if k < 1:
            raise ValueError(f"k is {k}; expected a neighbour's number, 1 or more")
        check_features(features, least=k + 1)
        x = features.double()
        # The nearest of all is the image itself, at distance zero.
        radii = [_squared_distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(BLOCK)]
        return Manifold(x, torch.cat(radii))

    def share_inside(self, features: Tensor) -> float:
        """The share of M D features that lie in at least one ball."""
        check_features(features)
        inside = [
            (_squared_distances(rows, self.centres) <= self.squared_radii).any(dim=1)
            for rows in features.double().split(BLOCK)
        ]
        return torch.cat(inside).double().mean().item()


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> PrecisionRecall:
    """Of N D and M D features. Raises ValueError where one set has no more than k images."""
    return PrecisionRecall(Manifold.of(real, k).share_inside(drawn), Manifold.of(drawn, k).share_inside(real))


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """N M, by one matrix product."""
    squares = one.square().sum(dim=1)[:, None] + other.square().sum(dim=1)
    return (squares - 2 * one @ other.T).clamp(min=0)
