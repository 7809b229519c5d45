"""A sweep of the base's guidance weight, judged at 64 px."""

from benchmarks.quality.drawing import Setting, draw, expected, verdicts
from benchmarks.quality.stored import store
from pipelines.evaluation.detector import Detector

WEIGHTS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
CATEGORIES = ("colours", "counting", "positional")


def measure(setting: Setting) -> None:
    """The share right per category and weight; the same seeds at every weight."""
    pipe, detector = setting.pipeline(), Detector.from_pretrained()
    prompts = setting.suite(*CATEGORIES)
    rows = []
    for weight in WEIGHTS:
        images = draw(pipe, prompts, setting.images, guidance_scale=weight, stop_after=0)
        for prompt, own in zip(prompts, images, strict=True):
            right = [verdict.right for verdict in verdicts(detector, own.cpu(), expected(prompt))]
            rows.append({"weight": weight, "category": prompt.category, "right": right})
        print(f"guidance {weight:g} done", flush=True)
    store("guidance", {"rows": rows})
