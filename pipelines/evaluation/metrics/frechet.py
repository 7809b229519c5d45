"""The Frechet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017, eq. 6).

    d^2 = |m - n|^2 + tr(C + S - 2 (C S)^(1/2))         means m, n; covariances C, S

N images, D features of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Of `count` feature vectors: mean (D), and scatter (D D), the sum of (x - mean)(x - mean)^T; float64.

    Those of two sets add up to those of both, so a set of any size is taken in batch by batch.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features: Tensor | Iterable[Tensor]) -> Moments:
        """Of N D features, or of batches of them. Raises ValueError for none, and for values that are not finite."""
        if isinstance(features, Tensor):
            features = features.split(1024)
        parts = (_of_batch(batch) for batch in features)
        first = next(parts, None)
        if first is None:
            raise ValueError("no features; give at least one batch")
        return reduce(add, parts, first)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together (Chan, Golub & LeVeque 1983, eq. 2.1): nothing cancels, whatever the mean."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {len(self.mean)} and {len(other.mean)} features; expected as many")
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """D D, without bias."""
        return self.scatter / (self.count - 1)


def _of_batch(features: Tensor) -> Moments:
    check_features(features)
    x = features.double()
    mean = x.mean(dim=0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def check_features(features: Tensor, least: int = 1) -> None:
    """Raises ValueError unless there are `least` feature vectors or more, N D, all finite."""
    if features.ndim != 2 or len(features) < least:
        raise ValueError(f"features of shape {tuple(features.shape)}; expected N D with N >= {least}")
    if not features.isfinite().all():
        raise ValueError("features hold values that are not finite; check the images and the weights they come from")


def frechet_distance(one: Moments, other: Moments, *, few: bool = False) -> float:
    """The squared Frechet distance; of Inception's features it is the FID.

    It is biased upwards, the more the fewer images there are; with no more of them than features, the covariance has no
    full rank, and the figure says little. That raises ValueError unless few is set.
    """
    features, count = len(one.mean), min(one.count, other.count)
    if count < 2 or (count <= features and not few):
        raise ValueError(
            f"{count} images are too few for a Frechet distance of {features} features; take more than "
            f"{features if not few else 1}, or features of fewer dimensions"
        )
    # With C = A A^T and S = B B^T, the eigenvalues of C S are the squared singular values of A^T B: no square root of a
    # number that has lost its digits, as there would be with a covariance that is nearly singular.
    trace_of_root = torch.linalg.svdvals(_factor(one.covariance).T @ _factor(other.covariance)).sum()
    squared = (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace()
    return max(0.0, (squared - 2 * trace_of_root).item())


def _factor(covariance: Tensor) -> Tensor:
    """A with A A^T = covariance; what rounding has made negative counts as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
