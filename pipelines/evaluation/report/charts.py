"""Bar charts and dots with intervals, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from pipelines.evaluation.report.html import Estimate, sentence, words

LABELS, RIGHT, TOP, AXIS = 170, 56, 8, 30
WIDTH = 760
BAR, BETWEEN, ROW = 11, 3, 16  # the thickness of a bar, the gap between two, and between two rows
COLOURS = 6  # classes c0 to c5 of the page; n is the neutral one

Series = Mapping[str, tuple[str, Estimate]]  # by name: a class of colour, an estimate


def bars(rows: Mapping[str, Series], title: str, *, low: float = 0.0, high: float = 1.0, percent: bool = True) -> str:
    """A row per label, in it a bar per series with its interval as a line; the axis runs from low to high."""

    def x(value: float) -> float:
        return LABELS + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LABELS - RIGHT)

    parts, y = [], float(TOP)
    for row, (label, series) in enumerate(rows.items()):
        height = len(series) * (BAR + BETWEEN) - BETWEEN
        weight = ' class="first"' if row == 0 else ""
        parts.append(
            f'<text x="{LABELS - 12}" y="{y + height / 2 + 4:.1f}" text-anchor="end"{weight}>{escape(_short(label))}'
            f"<title>{escape(label)}</title></text>"
        )
        for name, (colour, found) in series.items():
            value, middle = found["value"], y + BAR / 2
            text = sentence(found, "share" if percent else "score")
            start = x(max(low, 0.0))
            parts.append(
                f'<rect class="{colour}" x="{min(start, x(value)):.1f}" y="{y:.1f}" '
                f'width="{max(1.0, abs(x(value) - start)):.1f}" height="{BAR}" rx="1.5">'
                f"<title>{escape(f'{label}, {name}: {text}')}</title></rect>"
            )
            end = value
            if found["low"] is not None:
                parts.append(_whisker(x(found["low"]), x(found["high"]), middle))
                end = max(end, found["high"])
            shown = f"{100 * value:.0f}%" if percent else words(found, "score")[0]
            parts.append(f'<text class="value" x="{x(end) + 6:.1f}" y="{middle + 3.5:.1f}">{shown}</text>')
            y += BAR + BETWEEN
        y += ROW - BETWEEN
        if row == 0 and len(rows) > 1:
            parts.append(f'<line class="rule" x1="0" x2="{WIDTH}" y1="{y - ROW / 2:.1f}" y2="{y - ROW / 2:.1f}"/>')
    return _frame(_axis(low, high, x, y - ROW / 2, percent) + parts, y + AXIS - ROW / 2, title)


def dots(rows: Mapping[str, tuple[str, Estimate]], title: str) -> str:
    """A dot per label with its interval as a line, around 0."""
    reach = max(abs(found[end]) for _, found in rows.values() for end in ("low", "high"))
    reach = max(0.5, math.ceil(2 * reach) / 2)

    def x(value: float) -> float:
        return LABELS + (value + reach) / (2 * reach) * (WIDTH - LABELS - RIGHT)

    parts = []
    for row, (label, (colour, found)) in enumerate(rows.items()):
        y = TOP + 14 + 28 * row
        parts += [
            f'<text x="{LABELS - 12}" y="{y + 4}" text-anchor="end">{escape(_short(label))}</text>',
            _whisker(x(found["low"]), x(found["high"]), y),
            f'<circle class="{colour}" cx="{x(found["value"]):.1f}" cy="{y}" r="5.5">'
            f"<title>{escape(label)}: {sentence(found, 'strength')}</title></circle>",
        ]
    bottom = TOP + 28.0 * len(rows)
    return _frame(_axis(-reach, reach, x, bottom, False) + parts, bottom + AXIS, title)


def model_colours(models: Iterable[str]) -> dict[str, str]:
    """The class of colour of each model: the same in all charts."""
    return {name: f"c{i % COLOURS}" for i, name in enumerate(models)}


def legend(series: Mapping[str, str]) -> str:
    """Names with their class of colour, as HTML."""
    items = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true"><rect class="{colour}" width="12" height="12" rx="2"/></svg>'
        f"{escape(name)}</li>"
        for name, colour in series.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _whisker(start: float, end: float, y: float) -> str:
    return (
        f'<path class="whisker" d="M{start:.1f} {y:.1f}H{end:.1f}M{start:.1f} {y - 3:.1f}v6M{end:.1f} {y - 3:.1f}v6"/>'
    )


def _axis(low: float, high: float, x: Callable[[float], float], bottom: float, percent: bool) -> list[str]:
    step = 0.25 if percent else _round_step(high - low)
    ticks = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 4}" y2="{bottom:.1f}"/>'
        f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">'
        f"{f'{100 * tick:.0f}%' if percent else f'{tick:.2g}'.replace('-', '−')}</text>"
        for tick in ticks
    ]


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten: the largest that goes into the span three times."""
    power = 10.0 ** math.floor(math.log10(span / 3))
    return next(step for step in (5 * power, 2 * power, power) if span / step >= 3 - 1e-9)


def _frame(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"
