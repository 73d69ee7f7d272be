"""Rows as one table, in Markdown's form and aligned, to read in a terminal as well."""

from __future__ import annotations

from collections.abc import Sequence

from bench.rows import Point, Row

HEAD = ("work", "against", "wall", "CPU", "memory MB", "wall s", "CPU s", "written MB", "same output")
POINTS_HEAD = ("image", "wall s", "CPU s", "memory MB", "per 1,000 files or MB: ms")


def table(rows: Sequence[Row]) -> str:
    """Ratios are ours by theirs, median (minimum–maximum); a figure with nobody to compare with is seconds."""
    return aligned([HEAD, *(_cells(row) for row in rows)])


def points_table(points: Sequence[Point]) -> str:
    """The curve."""
    lines = [POINTS_HEAD]
    for point in points:
        files = point.unit == "files"
        name = f"{point.size:,} files" if files else f"{point.size / 1e6:,.0f} MB"
        each = point.wall_s * 1000 / (point.size / (1000 if files else 1e6))
        lines.append(
            (name, f"{point.wall_s:.2f}", f"{point.cpu_s:.2f}", f"{point.peak_bytes / 1e6:.0f}", f"{each:.1f}")
        )
    return aligned(lines)


def _cells(row: Row) -> tuple[str, ...]:
    if row.ours is None:
        return (row.work, row.against, f"missing: {row.missing}", "", "", "", "", "", "")
    sides = [side for side in (row.ours, row.theirs) if side]
    return (
        row.work,
        row.against,
        _figure(row, "wall"),
        _figure(row, "cpu") if row.theirs else "",
        " / ".join(f"{side.peak_bytes / 1e6:.0f}" for side in sides) + _goal(row, "peak", 1e6),
        " / ".join(f"{row.seconds('wall', side):.2f}" for side in sides),
        " / ".join(f"{row.seconds('cpu', side):.2f}" for side in sides),
        " / ".join(f"{row.seconds('written', side) / 1e6:.0f}" for side in sides),
        row.same,
    )


def _figure(row: Row, figure: str) -> str:
    found = row.spread(figure)
    if found is None:
        return ""
    low, middle, high = (f"{value:.3f}" for value in found)
    return f"{middle}{'' if row.theirs else ' s'} ({low}–{high}){_goal(row, figure, 1)}"


def _goal(row: Row, figure: str, unit: float) -> str:
    met = row.met(figure)
    return "" if met is None else f" ≤ {row.goals[figure] / unit:g}: {'yes' if met else 'NO'}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in cells
    )
