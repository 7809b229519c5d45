"""Can the judge be trusted? Against generated images labelled by eye, in docs/quality/labelled/."""

import json

from benchmarks.quality.drawing import read_images, verdicts
from benchmarks.quality.stored import FOLDER, store
from cascade.data.toybox import Description
from pipelines.evaluation.detector import Detector

LABELLED, LABELS = FOLDER / "labelled", "labels.jsonl"


def measure() -> None:
    """Agreement with the labels, and the share of images called right that are not."""
    labels = LABELLED / LABELS
    if not labels.is_file():
        raise SystemExit(f"no {labels}: draw images to label with `python -m benchmarks.quality label`")
    records = [json.loads(line) for line in labels.read_text().splitlines()]
    unlabelled = [record["file"] for record in records if record["right"] is None or None in record["eyes"]]
    if unlabelled:
        raise SystemExit(
            f'{len(unlabelled)} images have no label in {labels}, the first {unlabelled[0]}: write "eyes" and "right"'
        )
    detector, rows = Detector.from_pretrained(), []
    for record in records:
        expected = Description.from_json(json.dumps(record["expected"]))
        verdict = verdicts(detector, read_images([LABELLED / record["file"]]), expected)[0]
        rows.append(
            {"file": record["file"], "eyes": record["eyes"], "by_eye": record["right"], "by_detector": verdict.right}
        )
    store("judge", {"rows": rows})
