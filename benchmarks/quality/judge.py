"""Can the judge be trusted? Against generated images labelled by eye, in docs/quality/labelled/."""

import json

from benchmarks.quality.drawing import read_images, verdicts
from benchmarks.quality.stored import FOLDER, store
from cascade.data.toybox import Description
from pipelines.evaluation.detector import Detector

LABELLED = FOLDER / "labelled"


def measure() -> None:
    """Agreement with the labels, and the share of images called right that are not."""
    if not LABELLED.is_dir():
        raise SystemExit(f"no labelled images in {LABELLED}: label some first (labels.jsonl: file, expected, right)")
    detector, rows = Detector.from_pretrained(), []
    for line in (LABELLED / "labels.jsonl").read_text().splitlines():
        record = json.loads(line)
        expected = Description.from_json(json.dumps(record["expected"]))
        verdict = verdicts(detector, read_images([LABELLED / record["file"]]), expected)[0]
        rows.append({"file": record["file"], "by_eye": record["right"], "by_detector": verdict.right})
    store("judge", {"rows": rows})
