"""What docs/quality.md says of the judge: the stored shares, and which figures an earlier detector measured."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no installed package

from benchmarks.quality import report, stored  # noqa: E402


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module, name, where in (
        (stored, "FOLDER", tmp_path),
        (report, "IMAGES", tmp_path),
        (report, "PAGE", tmp_path / "quality.md"),
    ):
        monkeypatch.setattr(module, name, where)
    rows = [(True, True)] * 12 + [(False, False)] * 5 + [(False, True)] * 2 + [(True, False)]
    stored.store("judge", {"rows": [{"file": "", "by_eye": eye, "by_detector": found} for eye, found in rows]})
    return tmp_path


def test_agreement_and_both_kinds_of_error(pages: Path) -> None:
    report.write()
    page = (pages / "quality.md").read_text()
    assert "20 generated images" in page
    assert "agrees on 85.0% [" in page
    assert "10.0% [" in page.split("agrees on")[1].split("called right and are not")[0]
    assert "5.0% [" in page.split("called right and are not")[1].split("called wrong")[0]


def test_figures_of_an_earlier_detector_are_marked(pages: Path) -> None:
    report.write()
    assert "earlier detector" not in (pages / "quality.md").read_text()
    result = json.loads((pages / "judge.json").read_text())
    assert len(result.pop("detector")) == 12
    (pages / "judge.json").write_text(json.dumps(result))
    report.write()
    assert "measured with an earlier detector" in (pages / "quality.md").read_text()
