"""A curve of labelled points as SVG: Frechet distance against CLIP score, as in Imagen's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 44, 60  # margins
INK, FAINT, LINE = "#1c2530", "#d9dee4", "#1f6f8b"


def curve(points: Sequence[tuple[float, float, str]], title: str, x_label: str, y_label: str) -> str:
    """points: x, y and label of each, in the order of the line. A whole file, which needs no other."""
    xs, ys = _ticks([x for x, _, _ in points]), _ticks([y for _, y, _ in points])

    def right(x: float) -> float:
        return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)

    def text(x: float, y: float, what: str, style: str = 'text-anchor="middle"') -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" {style}>{escape(what)}</text>'

    parts = [text(LEFT, 24, title, 'font-size="15" font-weight="600"')]
    for x in xs:
        parts.append(f'<path d="M{right(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{FAINT}"/>')
        parts.append(text(right(x), HEIGHT - BOTTOM + 18, f"{x:g}"))
    for y in ys:
        parts.append(f'<path d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
        parts.append(text(LEFT - 8, down(y) + 4, f"{y:g}", 'text-anchor="end"'))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text(20, middle, y_label, f'text-anchor="middle" transform="rotate(-90 20 {middle:.1f})"'))
    places = [(right(x), down(y), label) for x, y, label in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    for x, y, label in places:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{LINE}"/>')
        parts.append(text(x, y - 9, label, 'text-anchor="middle" font-weight="600" paint-order="stroke" stroke="#fff"'))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, four to nine of them, whose ends enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        first, last = first - 1, last + 1
    return [round(i * step, 12) for i in range(first, last + 1)]
