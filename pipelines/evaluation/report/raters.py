"""What raters say, as sections of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipelines.evaluation.report.charts import bars, dots, legend, model_colours
from pipelines.evaluation.report.html import Section, anchor, cell, hardly_informing, sentence, table, words

QUESTIONS = {
    "alignment": ("Raters on alignment", "Which set of images better represents the caption?"),
    "quality": ("Raters on quality", "Which set of images is of higher quality?"),
}

Figures = Mapping[str, Any]


def questions(figures: Figures) -> dict[str, Figures]:
    """Those that raters answered."""
    asked = figures["raters"]["questions"] if figures["raters"] else {}
    return {question: asked[question] for question in QUESTIONS if question in asked}


def sections(figures: Figures) -> list[Section]:
    found = [
        Section(
            QUESTIONS[question][0],
            _question(question, asked, model_colours(figures["runs"])),
            tuple(map(_title, asked["pairs"])),
        )
        for question, asked in questions(figures).items()
    ]
    if figures["raters"]:
        found.append(Section("Raters and their agreement", _agreement(figures)))
    return found


def findings(figures: Figures) -> list[tuple[str, str, str]]:
    """What it is about, what was found, and more of it."""
    found = []
    for question, asked in questions(figures).items():
        about = QUESTIONS[question][0]
        if asked["ranking"] and "strengths" in asked["ranking"]:
            strengths = asked["ranking"]["strengths"]
            more = "strengths " + ", ".join(words(value, "strength")[0] for value in strengths.values())
            found.append((about, ", then ".join(strengths), more))
        else:
            found += [(about, *_verdict(pair)) for pair in asked["pairs"]]
    return found


def _verdict(pair: Figures) -> tuple[str, str]:
    """In a sentence, and with figures."""
    net, first, second = pair["overall"]["net"], pair["first"], pair["second"]
    if _clearly_ahead(net, 1):
        said = f"{first} is preferred to {second}"
    elif _clearly_ahead(net, -1):
        said = f"{second} is preferred to {first}"
    else:
        said = f"No clear difference between {first} and {second}"
    nets = [own["net"] for own in pair["categories"].values()]
    ahead, behind = _ahead(nets, 1), _ahead(nets, -1)
    more = f"; {first} ahead in {ahead}, {second} in {behind} of {len(nets)} categories" if len(nets) > 1 else ""
    return said, f"net preference {sentence(net, 'points')}{more}"


def _ahead(nets: Sequence[Figures], sign: int) -> str:
    """In how many categories the first (sign 1) or the second (-1) is ahead: "8 (5 clearly)"."""
    count = sum(sign * net["value"] > 0 for net in nets)
    return f"{count} ({sum(_clearly_ahead(net, sign) for net in nets) or 'none'} clearly)" if count else "0"


def _clearly_ahead(net: Figures, sign: int) -> bool:
    """Whether the interval leaves out 0."""
    return net["low"] is not None and min(sign * net["low"], sign * net["high"]) > 0


def notes(figures: Figures) -> list[str]:
    if not figures["raters"]:
        return []
    raters = figures["raters"]["raters"]
    excluded = [name for name, of in raters.items() if of["excluded"]]
    found = []
    if excluded:
        found.append(
            f"{len(excluded)} of {len(raters)} raters {'is' if len(excluded) == 1 else 'are'} left out, for passing "
            f"less than {figures['raters']['least_controls']:.0%} of the control items: {', '.join(excluded)}."
        )
    if not figures["raters"]["questions"]:
        found.append("No answers of raters are left.")
    elif len(raters) - len(excluded) == 1:
        found.append("One rater answered: the intervals hold for prompts like these and this rater, not for others.")
    return found


def _title(pair: Figures) -> str:
    return f"{pair['first']} against {pair['second']}"


def _question(question: str, asked: Figures, colours: Mapping[str, str]) -> str:
    parts = [f'<p class="quiet">{escape(QUESTIONS[question][1])}</p>']
    if asked["ranking"]:
        parts.append(_ranking(asked["ranking"], QUESTIONS[question][0], colours))
    return "".join(parts) + "".join(_pair(pair, QUESTIONS[question][0], colours) for pair in asked["pairs"])


def _ranking(ranking: Figures, title: str, colours: Mapping[str, str]) -> str:
    if "problem" in ranking:
        return f'<h3>Ranking</h3><p class="note">There is none: {escape(ranking["problem"])}.</p>'
    rows = [
        (place, name, cell(own, "strength"), f"{own['score']:.1%}")
        for place, (name, own) in enumerate(ranking["strengths"].items(), start=1)
    ]
    chart = dots({name: (colours[name], own) for name, own in ranking["strengths"].items()}, f"{title}: ranking")
    return (
        "<h3>Ranking</h3><p>Strengths of the Bradley-Terry-Davidson model, in log-odds; their mean is 0.</p>"
        f'<div class="scroll">{chart}</div>'
        + table(("place", "model", "strength", "score against an average model"), rows, text=(1,))
    )


def _pair(pair: Figures, title: str, colours: Mapping[str, str]) -> str:
    names = {
        "first": (pair["first"], colours[pair["first"]]),
        "neither": ("no preference", "n"),
        "second": (pair["second"], colours[pair["second"]]),
    }
    estimates = {"all": pair["overall"], **(pair["categories"] if len(pair["categories"]) > 1 else {})}
    chart = bars(
        {
            label: {name: (colour, own[key]) for key, (name, colour) in names.items()}
            for label, own in estimates.items()
        },
        f"{title}: {_title(pair)}",
    )
    rows = [
        [label, *(own[count] for count in ("prompts", "raters", "votes"))]
        + [cell(own[key], "share") for key in names]
        + [cell(own["net"], "points")]
        for label, own in estimates.items()
    ]
    heads = ("category", "prompts", "raters", "votes", *(name for name, _ in names.values()), "net, in points")
    return (
        f'<h3 id="{anchor(title, _title(pair))}">{escape(_title(pair))}</h3><p>{escape(": ".join(_verdict(pair)))}.</p>'
        + legend(dict(names.values()))
        + f'<div class="scroll">{chart}</div>'
        + table(heads, rows, overall=True)
        + hardly_informing(
            "Intervals of the net preference",
            {label: own["net"] for label, own in estimates.items()},
            scale=2.0,
            remedy="raters or prompts",
        )
    )


def _agreement(figures: Figures) -> str:
    raters = figures["raters"]
    rows: Sequence[Any] = [
        (
            QUESTIONS[question][0].removeprefix("Raters on "),
            "–" if asked["alpha"] is None else f"{asked['alpha']:.2f}".replace("-", "−"),
            "–" if asked["agreeing"] is None else f"{asked['agreeing']:.1%}",
        )
        for question, asked in questions(figures).items()
    ]
    agreement = table(("question", "Krippendorff's alpha", "two raters give the same answer"), rows)
    people = [
        (name, of["answers"], f"{of['passed']} of {of['controls']}" if of["controls"] else "–", _counted(of))
        for name, of in raters["raters"].items()
    ]
    return (
        "<p>Alpha is 1 where raters agree and 0 where they do no more than by chance; it knows that no preference lies "
        f"between the two others.</p>{agreement}<h3>Raters</h3>"
        + table(("rater", "answers", "control items passed", ""), people, text=(3,))
    )


def _counted(rater: Figures) -> str:
    return "left out" if rater["excluded"] else ""
