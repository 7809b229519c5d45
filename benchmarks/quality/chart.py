"""A line chart as SVG: shares in [0, 1] with their intervals as bands."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from pipelines.evaluation.intervals import Share

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 680, 320, 52, 44, 16, 132
PALETTE = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#475569")

Lines = Mapping[str, Sequence[tuple[float, Share]]]


def chart(lines: Lines, x_label: str, path: Path) -> None:
    """Each line is its points (x, share) in order; x starts at 0."""
    most = max(x for points in lines.values() for x, _ in points) or 1.0

    def px(x: float) -> float:
        return LEFT + x / most * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for percent in range(0, 101, 20):
        y = py(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for tick in range(5):
        x = most * tick / 4
        number = f"{x:,.1f}".removesuffix(".0")
        parts.append(f'<text x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    ends = apart([py(points[-1][1].value) for points in lines.values()])
    for (name, points), colour, end in zip(lines.items(), PALETTE, ends, strict=False):
        upper = [f"{px(x):.1f},{py(share.high):.1f}" for x, share in points]
        lower = [f"{px(x):.1f},{py(share.low):.1f}" for x, share in reversed(points)]
        middle_line = [f"{px(x):.1f},{py(share.value):.1f}" for x, share in points]
        parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{" ".join(middle_line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{end + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#334155"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    path.write_text("\n".join([head, *parts, "</svg>"]) + "\n")


def apart(heights: Sequence[float], gap: float = 15.0) -> list[float]:
    """Where to put labels: at their heights, counted from above, or as little higher as keeps them from each other."""
    found, below = list(heights), math.inf
    for i in sorted(range(len(found)), key=lambda i: -found[i]):
        found[i] = below = min(found[i], below - gap)
    return found
