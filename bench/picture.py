"""The result as one SVG: each ratio beside its goal, and the curve of cost by size. Readable on light and dark ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.rows import Point, Row

WIDTH, LEFT, LINE = 910, 400, 26
PLOT = 260
STYLE = """
text { fill: #222 } .soft { fill: #666 } .bar { fill: #0a7d5f } .bad { fill: #c2410c } .plain { fill: #8a8a8a } .goal, .axis { stroke: #555 }
.curve { stroke: #0a7d5f; fill: none } .dot { fill: #0a7d5f } .ideal { stroke: #888; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e4e4 } .soft { fill: #aaa } .bar, .dot { fill: #3ecf9f } .bad { fill: #fb923c }
  .goal, .axis { stroke: #bbb } .curve { stroke: #3ecf9f } .ideal { stroke: #999 }
}
"""


def picture(rows: Sequence[Row], points: Sequence[Point]) -> str:
    """An SVG text."""
    parts, height = _bars(rows)
    for number, unit in enumerate(("files", "bytes")):
        chosen = [point for point in points if point.unit == unit]
        if len(chosen) > 1:
            parts += _curve(chosen, unit, 60 + number * (WIDTH // 2), height + 30)
    if points:
        height += PLOT + 80
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _bars(rows: Sequence[Row]) -> tuple[list[str], int]:
    """A bar a row: the median as a share of the goal, where there is one, else of the other's; the goal is the line."""
    parts = [
        _text(
            0,
            16,
            "Wall time: the line is the goal (with none: the peer), a bar up to it meets it; grey bars have no goal",
            "soft",
        )
    ]
    y, unit = 30, (WIDTH - LEFT - 150) / 1.5
    for row in rows:
        name = f"{row.work} · {row.against}" if row.against else row.work
        parts.append(_text(0, y + 15, name))
        found = row.spread("wall")
        goal = row.goals.get("wall")
        if found is None:
            parts.append(_text(LEFT, y + 15, f"missing: {row.missing}", "soft"))
        else:
            middle = found[1]
            share = min(middle / (goal or 1.0), 1.5)
            kind = {None: "plain", True: "bar", False: "bad"}[row.met("wall")]
            parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y + 3}" width="{share * unit:.1f}" height="16"/>')
            of = "×" if row.theirs else "s"
            words = f"{middle:.3f} {of}" + (f", goal {goal:g}" if goal else "")
            parts.append(_text(LEFT + share * unit + 6, y + 15, words))
        y += LINE
    x = LEFT + unit
    parts.append(f'<line class="goal" x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{y}"/>')
    return parts, y + 10


def _curve(points: Sequence[Point], unit: str, left: int, top: int) -> list[str]:
    """Seconds by size, both logarithmic; the dashed line is linear cost from the largest image."""
    width = WIDTH // 2 - 110
    xs = [math.log10(point.size) for point in points]
    ys = [math.log10(point.wall_s) for point in points]
    low, high = math.floor(min(ys)), math.ceil(max(ys))
    span = (xs[-1] - xs[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - xs[0]) / span * width, top + PLOT - (y - low) / ((high - low) or 1) * PLOT

    parts = [
        _text(left - 40, top - 12, f"seconds of a build by {unit} of the image", "soft"),
        f'<path class="axis" fill="none" d="M{left} {top}V{top + PLOT}H{left + width}"/>',
    ]
    for power in range(low, high + 1):
        parts.append(_text(left - 40, place(xs[0], power)[1] + 4, f"{10.0**power:g}", "soft"))
    first_y = max(float(low), ys[-1] - span)
    start, end = place(xs[-1] - (ys[-1] - first_y), first_y), place(xs[-1], ys[-1])
    parts.append(f'<path class="ideal" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>')
    spots = [place(x, y) for x, y in zip(xs, ys, strict=True)]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in spots)}"/>')
    for point, (x, y) in zip(points, spots, strict=True):
        size = f"{point.size:,}" if unit == "files" else f"{point.size / 1e6:,.0f} MB"
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        parts.append(_text(x - 14, y - 8, f"{point.wall_s:.1f} s"))
        parts.append(_text(x - 18, top + PLOT + 16, size, "soft"))
    return parts


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{f" class={kind!r}" if kind else ""}>{escape(words)}</text>'
