"""Does the detector judge true renders right, clean and spoilt?"""

from collections import Counter

from benchmarks.quality.stored import store
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.detector.validation import draw, validate
from pipelines.evaluation.suite import TOYBOX, read_suite


def measure() -> None:
    """The share right of renders of the suite's scenes, per category and corruption, and under another's prompt."""
    drawn = draw(read_suite(TOYBOX))
    scenes = Counter(each.prompt.category for each in drawn)
    store("detector", {"scenes": scenes, "right": validate(Detector.from_pretrained(), drawn)})
