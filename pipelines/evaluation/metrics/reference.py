"""Sets of drawn images against one reference: every measure there is, what concerns the reference computed once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.evaluation.metrics.frechet import Moments, frechet_distance
from pipelines.evaluation.metrics.kernel import kernel_distance_by_subsets
from pipelines.evaluation.metrics.manifold import Manifold

NEIGHBOURS = 3  # Kynkaanniemi et al. 2019
SUBSETS, SUBSET = 100, 1000  # of the kernel distance; half of the images where they are fewer


@dataclass(frozen=True)
class Distances:
    """frechet: squared. kernel, kernel_sd: mean and standard deviation over subsets. precision, recall: shares."""

    frechet: float
    kernel: float
    kernel_sd: float
    precision: float
    recall: float


class Reference:
    """features: N D, of the reference's images. few: a Frechet distance even of too few images."""

    def __init__(self, features: Tensor, *, few: bool = False) -> None:
        self.features, self.few = features, few
        self.moments = Moments.of(features)
        self.manifold = Manifold.of(features, NEIGHBOURS)

    def compare(self, drawn: Tensor) -> Distances:
        """drawn: M D. Raises ValueError as `check_counts` does."""
        check_counts(len(self.features), len(drawn), drawn.shape[1], few=self.few)
        kernel = kernel_distance_by_subsets(
            self.features, drawn, subsets=SUBSETS, size=subset_size(len(self.features), len(drawn))
        )
        return Distances(
            frechet=frechet_distance(self.moments, Moments.of(drawn), few=self.few),
            kernel=kernel.mean,
            kernel_sd=kernel.sd,
            precision=self.manifold.share_inside(drawn),
            recall=Manifold.of(drawn, NEIGHBOURS).share_inside(self.features),
        )


def subset_size(references: int, drawn: int) -> int:
    """Images in a subset of the kernel distance."""
    return min(SUBSET, min(references, drawn) // 2)


def check_counts(references: int, drawn: int, dimensions: int, *, few: bool = False) -> None:
    """Raises ValueError where there are too few images to compare, naming the remedy."""
    count = min(references, drawn)
    least = NEIGHBOURS + 1 if few else max(NEIGHBOURS, dimensions) + 1
    if count < least:
        raise ValueError(
            f"{references} references and {drawn} drawn images are too few for features of {dimensions} dimensions: a "
            f"Frechet distance takes {max(NEIGHBOURS, dimensions) + 1} or more of both. Take more images, or features "
            "of fewer dimensions, or ask for the biased figure with --few"
        )
