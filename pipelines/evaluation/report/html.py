"""The pieces of the page: sections, tables, estimates in words. What is not markup already is escaped here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

Unit = Literal["share", "points", "score", "difference", "strength"]  # shares and points in percent
Estimate = Mapping[str, Any]  # value, low, high; low and high may be None

FORMS: dict[Unit, str] = {"share": ".1f", "points": "+.1f", "score": "#.3g", "difference": "+#.3g", "strength": "+.2f"}


class Html(str):
    """Text that is markup already."""


@dataclass(frozen=True)
class Section:
    """A section of the page; parts: what the table of contents lists below it."""

    title: str
    body: str
    parts: tuple[str, ...] = ()


def anchor(*names: str) -> str:
    """What a link to the part of these names ends in."""
    return "-".join(re.sub(r"\W+", "-", name.lower()).strip("-") for name in names)


def table(
    heads: Sequence[Any], rows: Sequence[Sequence[Any]], *, text: Collection[int] = (), overall: bool = False
) -> str:
    """text: the columns of running text. overall: the first row is set off."""

    def line(tag: str, values: Sequence[Any]) -> str:
        return "".join(
            (f'<{tag} class="text">' if column in text else f"<{tag}>")
            + (value if isinstance(value, Html) else escape(str(value)))
            + f"</{tag}>"
            for column, value in enumerate(values)
        )

    body = "".join(
        ('<tr class="overall">' if overall and number == 0 else "<tr>") + line("td", row) + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{line("th", heads)}</tr></thead><tbody>{body}</tbody></table></div>'


def words(found: Estimate, unit: Unit) -> tuple[str, str]:
    """An estimate and its interval: ("52.3%", "48.1 to 56.5"); "" for an interval there is none of."""

    def show(value: float) -> str:
        text = f"{100 * value if unit in ('share', 'points') else value:{FORMS[unit]}}"
        return text.removesuffix(".").replace("-", "−")

    value = show(found["value"]) + ("%" if unit == "share" else "")
    return value, "" if found["low"] is None else f"{show(found['low'])} to {show(found['high'])}"


def sentence(found: Estimate, unit: Unit) -> str:
    """The same as running text: 52.3% (48.1 to 56.5)."""
    value, span = words(found, unit)
    return value + (" points" if unit == "points" else "") + (f" ({span})" if span else "")


def cell(found: Estimate | None, unit: Unit) -> Html:
    """The same for a table."""
    if found is None:
        return Html("–")
    value, span = words(found, unit)
    return Html(f"{value} <small>{span}</small>" if span else value)


def hardly_informing(what: str, intervals: Mapping[str, Estimate], scale: float, remedy: str) -> str:
    """Which intervals leave open more than they rule out, as a paragraph; "" for none.

    scale: how far the least and the greatest possible value are apart. remedy: what there should be more of.
    """
    wide = [name for name, of in intervals.items() if of["low"] is not None and of["high"] - of["low"] > scale / 2]
    return (
        f"<p class='quiet'>{what} that hardly inform, as they leave open more than half of what is possible: "
        f"{escape(', '.join(wide))}. More {remedy} would narrow them.</p>"
        if wide
        else ""
    )
