"""The pieces of a report: where it goes, differences, estimates in words, axes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.evaluation.report.charts import bars
from pipelines.evaluation.report.command import output_files
from pipelines.evaluation.report.figures import judge_figures
from pipelines.evaluation.report.html import cell, hardly_informing, sentence, table
from pipelines.evaluation.scores import ImageScore, Scores


def test_where_it_goes():
    assert output_files(Path("a/b.html")) == (Path("a/b.html"), Path("a/b.json"))
    assert output_files(Path("a")) == (Path("a/report.html"), Path("a/report.json"))
    with pytest.raises(ValueError, match="is a file; give a folder, or a page that ends in"):
        output_files(Path(__file__))


def test_a_difference_of_shares_is_no_more_than_all():
    """Of two prompts Student's t would have it anything."""
    right, wrong = ImageScore(1.0), ImageScore(0.0)
    scores = {
        name: [Scores("eye", "1", "right", {(0, 0): first, (1, 0): second})]
        for name, first, second in (("one", right, wrong), ("two", wrong, right))
    }
    (judge,) = judge_figures(scores, {"cars": [0, 1]})
    assert judge["runs"]["two"]["against"] == {"value": 0.0, "low": -1.0, "high": 1.0}


def test_estimates_in_words():
    found = {"value": 0.123, "low": -0.05, "high": 0.5}
    assert sentence(found, "share") == "12.3% (−5.0 to 50.0)"
    assert sentence(found, "points") == "+12.3 points (−5.0 to +50.0)"
    assert sentence(found, "strength") == "+0.12 (−0.05 to +0.50)"
    assert sentence({"value": 31.25, "low": None, "high": None}, "score") == "31.2"
    assert [sentence({"value": value, "low": None, "high": None}, "score") for value in (0.25, 123.4, 0)] == [
        "0.250",
        "123",
        "0.00",
    ]
    assert cell(None, "share") == "–"
    assert "&lt;b&gt;" in table(("<b>",), [("x",)])


def test_intervals_that_leave_open_more_than_they_rule_out_are_named():
    intervals = {
        "wide": {"value": 0.5, "low": 0.2, "high": 0.71},
        "<half>": {"value": 0.25, "low": 0.0, "high": 0.5},
        "none": {"value": 1.0, "low": None, "high": None},
    }
    said = hardly_informing("Intervals", intervals, scale=1.0, remedy="prompts")
    assert "Intervals that hardly inform" in said
    assert ": wide. More prompts would narrow them." in said
    assert hardly_informing("Intervals", intervals, scale=2.0, remedy="prompts") == ""
    assert ": wide, &lt;half&gt;. " in hardly_informing("Intervals", intervals, scale=0.8, remedy="prompts")


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0, 0.77, "0 0.2 0.4 0.6"), (-0.13, 0.52, "0 0.2 0.4"), (-1, 1, "−1 −0.5 0 0.5 1"), (0, 31.4, "0 10 20 30")],
)
def test_the_axis_of_scores_has_round_values(low, high, labels):
    chart = bars(
        {"all": {"one": ("c0", {"value": high, "low": None, "high": None})}}, "", low=low, high=high, percent=False
    )
    assert re.findall(r'class="tick"[^>]*>([^<]*)<', chart) == labels.split()
