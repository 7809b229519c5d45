"""What the detector learned from people's judgements: read and written unchanged, and made by one command."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no installed package

from benchmarks.quality import lessons  # noqa: E402
from cascade.data.toybox.description import COLOURS, Description, Look  # noqa: E402
from cascade.data.toybox.nouns import NOUNS  # noqa: E402
from cascade.data.toybox.render import render  # noqa: E402
from cascade.data.toybox.scene import arrange  # noqa: E402
from pipelines.evaluation.detector.data import FIELDS, heart, to_bytes  # noqa: E402
from pipelines.evaluation.detector.lessons import LABELS, SHEET, read_lessons, write_lessons  # noqa: E402
from pipelines.evaluation.detector.network import SEEN, SIZE  # noqa: E402
from pipelines.evaluation.suite import TOYBOX, read_suite  # noqa: E402

THING = [3, 1, 0.1, 0.0, -0.2, 0.05, 0.3, 0.4]


def labels(count: int) -> list[dict[str, object]]:
    return [{"prompt": "a red cube", "right": i % 2 == 0, "things": [THING] * (1 + i % 3)} for i in range(count)]


@pytest.mark.parametrize("count", [1, 25, 27])
def test_lessons_are_read_as_they_were_written(tmp_path: Path, count: int) -> None:
    colours = np.random.default_rng(0).integers(256, size=(count, 3, 1, 1), dtype=np.uint8)
    pixels = np.broadcast_to(colours, (count, 3, SEEN, SEEN))
    write_lessons(tmp_path, pixels, labels(count))
    read = read_lessons(tmp_path)
    assert read.pixels.shape == pixels.shape
    inside = (..., slice(2, -2), slice(2, -2))  # JPEG blurs colours a little across the borders
    assert np.abs(read.pixels.astype(int) - pixels)[inside].max() <= 6
    assert (~np.isnan(read.things[..., 0])).sum(axis=1).tolist() == [1 + i % 3 for i in range(count)]
    assert read.things[0, 0] == pytest.approx([*THING, 1.0])
    assert np.nanmean(read.things[1::2, :, FIELDS.index("form")]) == 0 if count > 1 else True


def test_a_sheet_of_other_pictures_is_refused(tmp_path: Path) -> None:
    write_lessons(tmp_path, np.zeros((3, 3, SEEN, SEEN), np.uint8), labels(3))
    (tmp_path / LABELS).write_text("".join(json.dumps(label) + "\n" for label in labels(40)))
    with pytest.raises(ValueError, match="not one of 40 pictures"):
        read_lessons(tmp_path)


def test_the_shipped_lessons_are_whole() -> None:
    read = read_lessons(ROOT / "docs/quality/lessons")
    form = np.nanmax(read.things[..., FIELDS.index("form")], axis=1)
    assert set(form.tolist()) == {0.0, 1.0}
    assert np.nanmax(np.abs(read.things[..., FIELDS.index("right") :])) <= 1.1


def test_teaching_notes_what_stands_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renders taken for generated images: their hearts are found, and nouns and colours are the prompt's."""
    monkeypatch.setattr(lessons, "LESSONS", tmp_path / "lessons")
    asked = Description((Look("cup", "green"),))
    scene = arrange(asked, np.random.default_rng(0))
    picture = to_bytes(render([scene], SIZE))[0].transpose(1, 2, 0)
    Image.fromarray(picture).save(tmp_path / "a.png")
    record = {"file": "a.png", "prompt": "a green cup", "expected": asdict(asked)}
    lines = [record | {"right": right} for right in (True, False)]
    eye = tmp_path / "labels.jsonl"
    eye.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lessons.teach(eye)
    lessons.teach(eye)  # a second time, they are added
    read = read_lessons(tmp_path / "lessons")
    assert len(read.pixels) == 4
    noun, colour, *_, right, down, form = read.things[0, 0]
    assert (noun, colour, form) == (list(NOUNS).index("cup"), list(COLOURS).index("green"), 1)
    assert (right, down) == pytest.approx(heart(scene.things[0]), abs=0.08)
    assert read.things[1, 0, -1] == 0
    with Image.open(tmp_path / "lessons" / SHEET) as sheet:
        assert sheet.height == SEEN

    eye.write_text(json.dumps(record | {"right": [True]}))
    with pytest.raises(SystemExit, match="true or false for things of one kind"):
        lessons.teach(eye)


@pytest.mark.parametrize(
    "prompt",
    [
        "a yellow car in front of a black ball",
        "a pink cup on top of a green windmill",
        "a blue bottle to the left of a blue tree",
        "a turquoise ball on top of an orange lamp on top of a red train",
    ],
)
def test_of_different_things_each_is_taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    monkeypatch.setattr(lessons, "LESSONS", tmp_path / "lessons")
    asked = next(each.expected for each in read_suite(TOYBOX) if each.prompt == prompt)
    assert asked is not None
    scene = arrange(asked, np.random.default_rng(1))
    Image.fromarray(to_bytes(render([scene], SIZE))[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    right = [k == 1 for k in range(len(asked.looks))]
    eye = tmp_path / "labels.jsonl"
    record = {"file": "a.png", "prompt": prompt, "expected": asdict(asked)}
    eye.write_text(json.dumps(record | {"right": right}))
    lessons.teach(eye)
    things = read_lessons(tmp_path / "lessons").things[0, : len(right)]
    assert things[:, FIELDS.index("form")].tolist() == right
    good = scene.things[1]
    assert things[1, :2].tolist() == [list(NOUNS).index(good.look.noun), list(COLOURS).index(good.look.colour)]
    assert things[1, FIELDS.index("right") :][:2] == pytest.approx(heart(good), abs=0.08)

    eye.write_text(json.dumps(record | {"right": False}))
    with pytest.raises(SystemExit, match="one for each thing"):
        lessons.teach(eye)
