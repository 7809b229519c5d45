"""The toybox suite, drawn and judged, with a wrong-prompt control."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.drawing import Setting, draw_to, expected, read_images
from benchmarks.quality.stored import store
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.judge import judge
from pipelines.evaluation.suite import Prompt

DRAWN = Path("runs/quality/suite")


def measure(setting: Setting) -> None:
    """Draw the suite into runs/quality/suite (what is there is kept) and judge it; the control judges the same images
    against another prompt of their category."""
    prompts = setting.suite()
    files = draw_to(DRAWN, setting, prompts)
    detector, rows = Detector.from_pretrained(), []
    for number, (prompt, own) in enumerate(zip(prompts, files, strict=True)):
        asked, other, found = expected(prompt), expected(another(prompts, number)), detector.find(read_images(own))
        rows.append(
            {
                "category": prompt.category,
                "prompt": prompt.prompt,
                "wrong": [list(judge(asked, each).wrong) for each in found],
                "control": [judge(other, each).right for each in found],
            }
        )
    store("suite", {"images_per_prompt": setting.images, "rows": rows})


def another(prompts: Sequence[Prompt], number: int) -> Prompt:
    """A prompt of the same category that asks for something else."""
    own = prompts[number]
    same = [prompt for prompt in prompts if prompt.category == own.category and prompt.expected != own.expected]
    return same[number % len(same)]
