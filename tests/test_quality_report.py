"""benchmarks/quality: the report says what the stored results say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no installed package

from benchmarks.quality import binding, curve, judge, report, stored, suite  # noqa: E402
from benchmarks.quality.chart import apart, chart  # noqa: E402
from benchmarks.quality.drawing import Setting, expected  # noqa: E402
from pipelines.evaluation.intervals import Share, clustered_share  # noqa: E402
from pipelines.evaluation.judge import RULES  # noqa: E402
from weights.hub import EMBEDDED  # noqa: E402


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module, name, where in (
        (stored, "FOLDER", tmp_path),
        (report, "IMAGES", tmp_path),
        (report, "PAGE", tmp_path / "quality.md"),
        (suite, "DRAWN", tmp_path / "none"),
    ):
        monkeypatch.setattr(module, name, where)
    return tmp_path


def suite_rows() -> list[dict]:
    """Every third prompt of the suite: wrong in colour for one of its two images where the number is odd."""
    prompts = Setting(prompts=12).suite()
    return [
        {
            "category": prompt.category,
            "prompt": prompt.prompt,
            "wrong": [[], ["colour"] if number % 2 else []],
            "control": [False, False],
        }
        for number, prompt in enumerate(prompts)
    ]


def test_the_report_of_the_suite(pages: Path) -> None:
    rows = suite_rows()
    stored.store("suite", {"images_per_prompt": 2, "rows": rows})
    report.write()
    page = (pages / "quality.md").read_text()
    colours = [row for row in rows if row["category"] == "colours"]
    right = clustered_share([[not wrong for wrong in row["wrong"]] for row in colours])
    assert f"| colours | 12 | {right} | " in page
    assert "(colour)" in page, "failures are named with what is wrong"
    assert "## Guidance" not in page, "what was not measured is left out"
    assert json.loads((pages / "suite.json").read_text())["environment"].splitlines()[0] in page


def test_the_charts_are_drawn(pages: Path) -> None:
    rows = [
        {
            "category": category,
            "samples": samples,
            "weight": float(samples),
            "right": [True, samples > 1],
            "bound": [True],
        }
        for category in ("colours", "positional")
        for samples in (1, 2, 3)
        for _ in range(3)
    ]
    stored.store("curve", {"rows": rows})
    stored.store("guidance", {"rows": rows})
    report.write()
    for name in ("learning-curve.svg", "guidance.svg"):
        assert (pages / name).read_text().count("<polyline") == (3 if name.startswith("learning") else 2)


def test_a_chart_places_its_points(tmp_path: Path) -> None:
    chart({"a": [(0.0, Share(0.0, 0.0, 0.1)), (10.0, Share(1.0, 0.9, 1.0))]}, "x", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert 'points="52.0,276.0 548.0,16.0"' in text


def test_the_control_asks_for_something_else() -> None:
    prompts = Setting(prompts=5).suite()
    for number, prompt in enumerate(prompts):
        other = suite.another(prompts, number)
        assert other.category == prompt.category
        assert expected(other) != expected(prompt)


def test_a_part_of_the_suite_is_evenly_spaced() -> None:
    whole, part = Setting(prompts=None).suite("stacks"), Setting(prompts=3).suite("stacks")
    assert part == [whole[0], whole[round((len(whole) - 1) / 2)], whole[-1]]


def test_the_report_of_the_detector(pages: Path) -> None:
    right = {"clean": {"colours": 0.9951, "materials": 1.0}, "64 px": {"colours": 0.98}}
    stored.store("detector", {"scenes": {"colours": 200, "materials": 150}, "right": right})
    report.write()
    page = (pages / "quality.md").read_text()
    assert "| colours | 200 | 99.5% | 98.0% |" in page
    assert "| materials | 150 | 100.0% | - |" in page


def test_labels_that_are_missing_are_named(pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "LABELLED", pages)
    with pytest.raises(SystemExit, match=r"benchmarks\.quality label"):
        judge.measure()
    (pages / "labels.jsonl").write_text('{"file": "000.jpg", "expected": {}, "right": null}\n')
    with pytest.raises(SystemExit, match=r"000\.jpg"):
        judge.measure()


def store_judge() -> None:
    """20 images, of which two are called right and are not, one wrong and is right; in one the eyes differ."""
    seen = [(True, True)] * 12 + [(False, False)] * 5 + [(False, True)] * 2 + [(True, False)]
    rows = [{"file": "", "eyes": [eye, eye], "by_eye": eye, "by_detector": found} for eye, found in seen]
    rows[0]["eyes"] = [True, False]
    stored.store("judge", {"rows": rows})


def test_agreement_and_both_kinds_of_error(pages: Path) -> None:
    store_judge()
    report.write()
    page = (pages / "quality.md").read_text()
    assert "20 generated images" in page
    assert "they agree on 95.0% [" in page
    assert "agrees on 85.0% [" in page
    assert "10.0% [" in page.split("agrees on")[1].split("called right and are not")[0]
    assert "5.0% [" in page.split("called right and are not")[1].split("called wrong")[0]


def test_figures_of_an_earlier_detector_are_marked(pages: Path) -> None:
    store_judge()
    report.write()
    assert "earlier detector" not in (pages / "quality.md").read_text()
    result = json.loads((pages / "judge.json").read_text())
    digest, rules = result.pop("detector").split(", rules ")
    assert (len(digest), rules) == (12, str(RULES))
    (pages / "judge.json").write_text(json.dumps(result))
    report.write()
    assert "measured with an earlier detector" in (pages / "quality.md").read_text()


def test_labels_keep_apart():
    assert apart([100.0, 20.0, 98.0, 100.0], gap=10.0) == [100.0, 20.0, 80.0, 90.0]


def test_what_a_linear_map_tells_of_encodings() -> None:
    """All that lies in a direction of its own; nothing of what is a product of two; of other rows than it saw."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 8, generator=generator).sign()
    fitted = torch.arange(3000) < 2000
    assert binding.told(x, (x[:, 3] > 0).long(), fitted) == 1.0
    assert abs(binding.told(x, (x[:, 3] * x[:, 4] > 0).long(), fitted) - 0.5) < 0.06
    noise = torch.randn(300, 250, generator=generator)
    labels = torch.randint(2, (300,), generator=generator)
    assert binding.told(noise, labels, torch.arange(300) < 200) < 0.7, "what it was fitted on is not counted"


def test_binding_is_told_of_the_shipped_encoder(pages: Path) -> None:
    binding.measure(Setting())
    report.write()
    assert "| encoding | " in (pages / "quality.md").read_text()
    told = json.loads((pages / "binding.json").read_text())["told"]
    assert told["noun alone"]["colour"] < 0.2, "a colour cannot be told from the noun"
    assert told["encoding"]["colour"] > 0.9
    assert told["encoding"]["place"] > told["noun alone"]["place"] + 0.2


def test_versions_of_the_default_come_from_history() -> None:
    """The last is what was committed last; earlier ones are other weights."""
    log = subprocess.run(
        ["git", "-C", str(EMBEDDED), "log", "--format=%h", "--", "stage-0-base-64"], capture_output=True, check=False
    )
    if len(log.stdout.split()) < 2:
        pytest.skip("no history here, or a shallow one")
    bases = [(folder / "stage-0-base-64" / "model.safetensors").read_bytes() for folder in curve.versions()]
    assert len(set(bases)) == len(bases) >= 2
    committed = ["git", "-C", str(EMBEDDED), "show", "HEAD:./stage-0-base-64/model.safetensors"]
    assert bases[-1] == subprocess.run(committed, capture_output=True, check=True).stdout
