"""The table as one SVG: a pair of bars a row, ours and theirs, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, BAR, LEFT = 760, 18, 300


def bars(rows: Sequence[dict[str, object]]) -> str:
    """An SVG text; rows without times are named as missing."""
    timed = [row["wall_s"] for row in rows if "wall_s" in row]
    longest = max((max(pair) for pair in timed), default=1.0)  # type: ignore[call-overload]
    height = 30 + len(rows) * (2 * BAR + 24)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        "<style>text{fill:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
    ]
    y = 20
    for row in rows:
        parts.append(f'<text x="0" y="{y + BAR}">{escape(str(row["work"]))} · {escape(str(row["peer"]))}</text>')
        if "wall_s" not in row:
            parts.append(f'<text x="{LEFT}" y="{y + BAR}">missing</text>')
        else:
            for seconds, colour in zip(row["wall_s"], ("#0a7", "#999"), strict=True):  # type: ignore[call-overload]
                length = (WIDTH - LEFT - 60) * seconds / longest
                parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 4}" fill="{colour}"/>')
                parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + BAR - 6}">{seconds:.2f} s</text>')
                y += BAR
            y -= 2 * BAR
        y += 2 * BAR + 24
    return "\n".join([*parts, "</svg>", ""])
