"""Write the HTML page, with inline SVG and no other files. The same disk gives the same bytes.

The content comes from untrusted images: every name is escaped, and the content security policy blocks all other code and
resources.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple
from unicodedata import east_asian_width

from imagetool.look.map import survey as s
from imagetool.look.map.grid import Cell, Run, grid, weights
from imagetool.look.map.treemap import Box, Tile, tiles, tree
from rootdisk.artifact.format import ChunkIndex

COLUMNS, ROWS_MAX, CELL = 40, 25, 10  # of the grids; side of a cell in units of the picture
LARGEST_COUNT = 20
GLYPH = 0.61  # width of a monospaced letter, relative to its size
PATTERNS = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    + "".join(
        f'<pattern id="{name}" width="4" height="4" patternUnits="userSpaceOnUse">'
        f'<rect width="4" height="4" style="fill:{fill}"/><path d="{line}" style="stroke:{stroke};fill:none"/></pattern>'
        for name, fill, line, stroke in (
            ("metadata", "#a9b1ba", "M-1 1l2-2M0 4l4-4M3 5l2-2", "#6d7681"),
            ("journal", "#bb96dc", "M1 2h2", "#6d4a8d"),
            ("slot", "#f07f72", "M0 2h4M2 0v4", "#a03227"),
            ("new", "#f09a55", "M-1 3l2 2M0 0l4 4M3-1l2 2", "#a8530f"),
            ("hole", "var(--hole)", "M0 4l4-4", "var(--hatch)"),
        )
    )
    + "</defs></svg>"
)
CHUNK_WORDS = {s.NEW: ("new", "new"), s.REUSED: ("reused", "reused"), s.ZERO: ("hole", "zeros")}
HEAT = (("cold", "not read"), ("heat1", "up to a third read"), ("heat2", "up to two thirds"), ("heat3", "more or all"))


class Against(NamedTuple):
    """Name and chunks of the other version."""

    name: str
    chunks: ChunkIndex


def page(name: str, disk: s.Disk, surveyed: s.Survey, against: Against | None = None, reads: Sequence[Run] = ()) -> str:
    """Return the page about a surveyed disk with the title `name`. `reads` are those of a boot, in order."""
    cells = grid(surveyed.runs, surveyed.size, COLUMNS * ROWS_MAX)
    parts = [_head(name, disk, surveyed), _blocks(surveyed, cells), _files(surveyed)]
    if against is not None and disk.index is not None:
        parts.append(_chunks(disk.index, against, cells))
    if reads:
        parts.append(_reads(surveyed, cells, reads))
    script = files("imagetool.look.map").joinpath("page.js").read_text("utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = files("imagetool.look.map").joinpath("style.css").read_text("utf-8") + "".join(_colours(surveyed))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}</title>
<style>
{style}</style>
</head>
<body>
{PATTERNS}
<main>
{"".join(parts)}</main>
<output></output>
<script>{script}</script>
</body>
</html>
"""


def _colours(surveyed: s.Survey) -> Iterator[str]:
    """Yield the CSS colour of each layer: distinct hues, alternating lightness, all readable with black text."""
    for kind in range(s.FIRST_LAYER, len(surveyed.kinds)):
        place = kind - s.FIRST_LAYER
        yield f".kind{kind} {{ fill: oklch({(0.74, 0.62)[place % 2]} 0.12 {(245 + place * 137.5) % 360:g}); }}\n"


def amount(count: int) -> str:
    """Format a number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    power = min((int(count / 0.9995).bit_length() - 1) // 10, 4)
    value = count / (1 << 10 * power)
    return f"{value:.{1 if value < 99.5 else 0}f} {' KMGT'[power]}iB"


def _head(name: str, disk: s.Disk, surveyed: s.Survey) -> str:
    data = sum(run.length for run in surveyed.runs)
    facts = [("disk", amount(surveyed.size)), ("in use", amount(data)), ("files", f"{len(surveyed.files):,}")]
    if disk.index is not None:
        full = sum(not chunk.zero for chunk in disk.index.chunks)
        facts += [("compressed", amount(disk.index.blob_end)), ("chunks with data", f"{full:,}")]
        facts.append(("layers", str(len(surveyed.kinds) - s.FIRST_LAYER)))
    listed = "".join(f"<div><dt>{words}</dt><dd>{value}</dd></div>" for words, value in facts)
    digest = f"<p><code>{escape(disk.digest)}</code></p>" if disk.digest else ""
    return f"<header><h1>{escape(name)}</h1>{digest}<dl>{listed}</dl></header>\n"


class Look(NamedTuple):
    """The appearance of a kind: CSS class, name, amount as text, a few letters for a cell."""

    style: str
    name: str
    amount: str = ""
    mark: str = ""
    detail: str = ""


HOLE = Look("hole", "hole")


def _blocks(surveyed: s.Survey, cells: Sequence[Cell]) -> str:
    rooms: dict[int, int] = {}
    for run in surveyed.runs:
        rooms[run.kind] = rooms.get(run.kind, 0) + run.length
    looks = {
        kind: Look(
            f"kind{kind}",
            of.name,
            amount(rooms[kind]),
            str(kind - s.FIRST_LAYER + 1) if kind >= s.FIRST_LAYER and len(surveyed.kinds) > s.FIRST_LAYER + 1 else "",
            of.detail,
        )
        for kind, of in enumerate(surveyed.kinds)
        if kind in rooms
    }
    hole = HOLE._replace(amount=amount(surveyed.size - sum(rooms.values())))
    shown = [
        looks[_foremost(weight)] if not cell.hole else HOLE
        for cell, weight in zip(cells, weights(cells, surveyed.runs), strict=True)
    ]
    words = f"The disk from its first to its last byte. A square is {_cell_size(cells)}. A hole of any length is one square."
    return _section("Blocks by layer", words, _grid("blocks", "Blocks by layer", cells, shown, looks.values()),
                    [*looks.values(), hole])  # fmt: skip


def _foremost(weight: dict[int, int]) -> int:
    """Return the kind to show for a cell: the largest part, but slot or journal if it contains any of them."""
    for kind in (s.SLOT, s.JOURNAL):
        if kind in weight:
            return kind
    return max(weight, key=lambda kind: (weight[kind], -kind))


def _cell_size(cells: Sequence[Cell]) -> str:
    return amount(max((cell.end - cell.start for cell in cells if not cell.hole), default=0))


def _chunks(index: ChunkIndex, against: Against, cells: Sequence[Cell]) -> str:
    runs = s.chunk_runs(index, against.chunks)
    looks = {}
    for state, (style, word) in CHUNK_WORDS.items():
        mine = [(run, chunk) for run, chunk in zip(runs, index.chunks, strict=True) if run.kind == state]
        room = sum(run.length for run, _ in mine)
        packed = sum({chunk.sha256: chunk.blob_length for _, chunk in mine}.values())
        looks[state] = Look(
            style, word, f"{len(mine):,} chunks, {amount(packed if state != s.ZERO and room else room)}"
        )
    shown = []
    for cell, weight in zip(cells, weights(cells, runs), strict=True):
        full = {state: size for state, size in weight.items() if state != s.ZERO}
        # A single changed chunk among many must be visible.
        shown.append(looks[s.NEW if s.NEW in full else s.REUSED] if full and not cell.hole else looks[s.ZERO])
    words = f"A host that has {against.name} fetches only new chunks. Amounts are compressed."
    return _section("Chunks", words, _grid("chunks", "Chunks by reuse", cells, shown, looks.values()), looks.values())


def _reads(surveyed: s.Survey, cells: Sequence[Cell], reads: Sequence[Run]) -> str:
    merged: list[Run] = []
    for run in sorted(reads):
        if merged and run.offset <= merged[-1].end:
            merged[-1] = Run(merged[-1].offset, max(run.end, merged[-1].end) - merged[-1].offset, 0)
        else:
            merged.append(run)
    read = sum(run.length for run in merged)
    looks = [Look(style, word) for style, word in HEAT]
    shown = []
    for cell, weight in zip(cells, weights(cells, merged), strict=True):
        part = weight.get(0, 0) / (cell.end - cell.start)
        shown.append(looks[0 if not part else 1 if part <= 1 / 3 else 2 if part <= 2 / 3 else 3])
        if cell.hole and not part:
            shown[-1] = HOLE
    room = sum(run.length for run in surveyed.runs)
    words = (
        f"{len(reads):,} reads of {amount(read)} in all: {100 * read / room:.1f} % of what is in use." if room else ""
    )
    picture = _grid("reads", "What a boot reads", cells, shown, looks)
    return _section("Read at boot", words, picture, [*looks, HOLE])


def _section(head: str, words: str, picture: str, legend: Iterable[Look], more: str = "") -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 28 16" aria-hidden="true"><rect width="28" height="16" class="{look.style}"/>'
        + (f'<text x="14" y="12" font-size="11" text-anchor="middle">{look.mark}</text>' if look.mark else "")
        + f"</svg><b{_attribute('title', look.detail)}>{escape(look.name)}</b>"
        f"<span>{look.amount}</span></li>"
        for look in legend
    )
    listed = f'<ul class="legend">{items}</ul>' if items else ""
    return f"<section><h2>{head}</h2><p>{escape(words)}</p>{picture}{listed}{more}</section>\n"


def _grid(name: str, title: str, cells: Sequence[Cell], shown: Sequence[Look], looks: Iterable[Look]) -> str:
    """Draw cells from left to right and top to bottom. Equal neighbours are merged."""
    shapes, marks = [], []
    marked: set[str] = set()
    at = 0
    while at < len(cells):
        end = at + 1
        while end < len(cells) and end % COLUMNS and shown[end] == shown[at] and not cells[at].hole | cells[end].hole:
            end += 1
        x, y, width = at % COLUMNS * CELL, at // COLUMNS * CELL, (end - at) * CELL
        look = shown[at]
        what = f"{look.name}, {amount(cells[end - 1].end - cells[at].start)} from {amount(cells[at].start)} on"
        shapes.append(_rect(Box(x, y, width, CELL), f"cell {look.style}", what))
        if look.mark and look.mark not in marked:
            marked.add(look.mark)
            marks.append(_text(x + CELL / 2, y + CELL - 2.4, 7, look.mark, middle=True))
        at = end
    height = max(1, -(-len(cells) // COLUMNS)) * CELL
    listed = ", ".join(f"{look.name} {look.amount}".strip() for look in looks)
    return _svg(name, title, listed, COLUMNS * CELL, height, [*shapes, *marks])


def _files(surveyed: s.Survey) -> str:
    top = tree((file.path, file.room, file.kind) for file in surveyed.files)
    sizes = {file.path: file for file in surveyed.files}
    pictures = "".join(
        _treemap(f"files-{form}", form, tiles(top, Box(0, 0, width, height), most=most, head=head, rim=2), surveyed, sizes,
                 width, height)
        for form, width, height, most, head in (("wide", 960, 560, 320, 15), ("narrow", 360, 520, 110, 13))
    )  # fmt: skip
    largest = sorted(surveyed.files, key=lambda file: (-file.room, file.path))[:LARGEST_COUNT]
    rows = "".join(
        f'<tr><td>{escape(file.path)}</td><td>{escape(surveyed.kinds[file.kind].name)}</td>'
        f'<td class="number">{amount(file.size)}</td></tr>'
        for file in largest
    )  # fmt: skip
    table = (
        f"<details><summary>The {len(largest)} largest files</summary><table><thead><tr><th>path</th><th>layer</th>"
        f'<th class="number">size</th></tr></thead><tbody>{rows}</tbody></table></details>'
    )
    words = "Areas are bytes on the disk. Directories are nested. Colours are the layers above."
    return _section("Files", words, pictures, (), table)


def _treemap(
    name: str, form: str, tiles_: Iterable[Tile], disk: s.Survey, sizes: dict[str, s.Sized], width: int, height: int
) -> str:
    shapes = []
    small = 11
    for tile in tiles_:
        kind = disk.kinds[tile.kind].name
        count = f"{tile.files:,} file{'s' if tile.files > 1 else ''}"
        if tile.what == "file":
            file = sizes[tile.path]
            room = "" if file.size == tile.size else f", {amount(tile.size)} on the disk"
            what = f"{tile.path}: {amount(file.size)}{room}, {kind}"
        elif tile.what == "rest":
            what = f"{tile.path}: {count} more, {amount(tile.size)}, most of it {kind}"
        else:
            what = f"{tile.path}: {count}, {amount(tile.size)}, most of it {kind}"
        is_open = tile.what == "open"
        shapes.append(_rect(tile.box, f"tile {'open' if is_open else f'kind{tile.kind}'}", what))
        if tile.depth or not is_open:
            shapes.append(_label(tile, small))
    title = "Files by size"
    listed = (
        f"{len(disk.files)} files, {amount(sum(file.room for file in disk.files))}; the largest are in the table below"
    )
    return _svg(name, title, listed, width, height, shapes, form)


def _label(tile: Tile, size: int) -> str:
    """Draw the name in a tile, cut to its width; "" if nothing fits."""
    box = tile.box
    text = fitted(tile.label, int((box.width - 8) / (size * GLYPH)))
    if not text or box.height < size + 4:
        return ""
    label = _text(box.x + 4, box.y + size + 1, size, text, style="head" if tile.what == "open" else "")
    room = amount(tile.size)
    if tile.what != "open" and box.height >= 2 * size + 8 and len(room) * size * GLYPH <= box.width - 8:
        label += _text(box.x + 4, box.y + 2 * size + 4, size, room)
    return label


def fitted(name: str, columns: int) -> str:
    """Shorten `name` to `columns` monospaced letters, with an ellipsis; "" if too little would be left."""
    widths = [2 if east_asian_width(letter) in "WF" else 1 for letter in name]
    if sum(widths) <= columns:
        return name
    taken = 0
    for count, width in enumerate(widths):
        if taken + width > columns - 1:
            return f"{name[:count]}…" if count >= 3 else ""
        taken += width
    return ""


def _svg(
    name: str, title: str, described: str, width: float, height: float, shapes: Iterable[str], style: str = ""
) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-desc"'
        f"{_attribute('class', style)}>"
        f'<title id="{name}-title">{title}</title><desc id="{name}-desc">{escape(described)}</desc>'
        f"{''.join(shapes)}</svg>\n"
    )


def _rect(box: Box, style: str, title: str) -> str:
    return (
        f'<rect x="{box.x:.4g}" y="{box.y:.4g}" width="{box.width:.4g}" height="{box.height:.4g}" class="{style}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, size: int, text: str, *, middle: bool = False, style: str = "") -> str:
    return (
        f'<text x="{x:.4g}" y="{y:.4g}" font-size="{size}"'
        f"{_attribute('text-anchor', 'middle' if middle else '')}{_attribute('class', style)}>{escape(text)}</text>"
    )


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""
