"""How far a set of images is from another, and from its captions: measures over features of the images.

from pipelines.evaluation.metrics import Moments, frechet_distance, open_features
from pipelines.evaluation.metrics.images import extract

features = open_features("dinov2:facebook/dinov2-base")
real, drawn = (extract(features, paths, side=256) for paths in (references, pictures))  # N D each
print(frechet_distance(Moments.of(real), Moments.of(drawn)))
"""

from pipelines.evaluation.metrics.clip import Clip
from pipelines.evaluation.metrics.extractors import Extractor, Features, open_features
from pipelines.evaluation.metrics.frechet import Moments, frechet_distance
from pipelines.evaluation.metrics.kernel import kernel_distance, kernel_distance_by_subsets
from pipelines.evaluation.metrics.manifold import Manifold, precision_recall

__all__ = [
    "Clip",
    "Extractor",
    "Features",
    "Manifold",
    "Moments",
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_by_subsets",
    "open_features",
    "precision_recall",
]
