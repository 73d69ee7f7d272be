"""The graph of doit's tasks as a picture: a task is to the right of those it needs. The same graph gives the same SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

Edge = tuple[str, str]  # from what is made before to what needs it

WIDTH, HEIGHT, GAP_X, GAP_Y, RIM = 150, 34, 46, 12, 16
LABEL_MAX = 19  # letters that go into a box
SWEEPS = 6
STYLE = """svg { color-scheme: light dark; background: #fbfbfa; font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
rect { fill: #fff; stroke: #8a94a0; } text { fill: #1b1f24; } path { fill: none; stroke: #8a94a0; } marker path { fill: #8a94a0; stroke: none; }
@media (prefers-color-scheme: dark) { svg { background: #14171a; } rect { fill: #1f2429; stroke: #7b8591; } text { fill: #e8eaed; } }"""


def tasks(dodo: dict[str, Any], only: str = "") -> tuple[list[str], list[Edge]]:
    """Names and edges of the tasks of `dodo`, dodo.py's namespace; with `only`, of the image of that name."""
    from doit.control import TaskControl
    from doit.loader import load_tasks

    found = TaskControl(load_tasks(dodo)).tasks  # with edges for files that another task makes
    real = {name: task for name, task in found.items() if not task.has_subtask}
    edges = sorted({(before, name) for name, task in real.items() for before in task.task_dep if before in real})
    wanted = {name for edge in edges for name in edge}
    if only:
        wanted = _with_all_before({name for name in wanted if name.partition(":")[2] == only}, edges)
    return sorted(wanted), [edge for edge in edges if wanted.issuperset(edge)]


def _with_all_before(names: set[str], edges: Iterable[Edge]) -> set[str]:
    before = defaultdict(set)
    for first, second in edges:
        before[second].add(first)
    waiting = list(names)
    while waiting:
        for name in before[waiting.pop()] - names:
            names.add(name)
            waiting.append(name)
    return names


def direct(edges: Sequence[Edge]) -> list[Edge]:
    """The edges that no longer way makes needless: of three tasks in a row the first leads to the second only."""
    after = defaultdict(list)
    for first, second in edges:
        after[first].append(second)
    kept = []
    for first, second in edges:
        seen: set[str] = set()
        waiting = [other for other in after[first] if other != second]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += after[name]
        if second not in seen:
            kept.append((first, second))
    return kept


def columns(names: Sequence[str], edges: Sequence[Edge]) -> list[list[str]]:
    """The names by the longest way to them, and in a column so that few edges cross; `edges` go round in no circle."""
    before: dict[str, list[str]] = {name: [] for name in names}
    after: dict[str, list[str]] = {name: [] for name in names}
    for first, second in edges:
        before[second].append(first)
        after[first].append(second)
    rank: dict[str, int] = {}
    waiting = [name for name in names if not before[name]]
    missing = {name: len(before[name]) for name in names}
    while waiting:
        name = waiting.pop()
        rank[name] = max((rank[first] + 1 for first in before[name]), default=0)
        for second in after[name]:
            missing[second] -= 1
            if not missing[second]:
                waiting.append(second)
    found: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in names:
        found[rank[name]].append(name)
    for sweep in range(SWEEPS):
        _sort(found if sweep % 2 == 0 else found[::-1], before if sweep % 2 == 0 else after)
    return found


def _sort(ranks: Sequence[list[str]], neighbours: Mapping[str, Sequence[str]]) -> None:
    """Each column by the mean place of its neighbours in those already sorted."""
    place: dict[str, float] = {}
    for names in ranks:
        mean = {}
        for name in names:
            known = [place[other] for other in neighbours[name] if other in place]
            mean[name] = sum(known) / len(known) if known else names.index(name) / len(names)
        names.sort(key=lambda name: (mean[name], name))
        place |= {name: (at + 0.5) / len(names) for at, name in enumerate(names)}


def drawn(names: Sequence[str], edges: Sequence[Edge]) -> str:
    """Return the SVG: a box for each task, an arrow for each edge that others do not imply. No arrow passes behind a box."""
    edges = direct(edges)
    ways = _ways(names, edges)
    stops = [stop for way in ways.values() for stop in way[1:-1]]
    found = columns([*names, *stops], [edge for way in ways.values() for edge in pairwise(way)])
    rows = max(map(len, found), default=0)
    height = 2 * RIM + max(0, rows * (HEIGHT + GAP_Y) - GAP_Y)
    width = 2 * RIM + max(0, len(found) * (WIDTH + GAP_X) - GAP_X)
    place = {}
    for column, tasks in enumerate(found):
        free = (height - 2 * RIM) / len(tasks)
        for row, name in enumerate(tasks):
            place[name] = RIM + column * (WIDTH + GAP_X), RIM + free * (row + 0.5) - HEIGHT / 2
    arrows = [f'<path d="{_path([place[stop] for stop in way])}" marker-end="url(#end)"/>' for way in ways.values()]
    boxes = [
        f'<g><title>{escape(name)}</title><rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 4:g}" text-anchor="middle">{escape(_label(name))}</text></g>'
        for name, (x, y) in place.items()
        if name not in stops
    ]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-labelledby="title desc">
<title id="title">doit's tasks</title>
<desc id="desc">{escape("; ".join(f"{first} before {second}" for first, second in edges))}</desc>
<style>{STYLE}</style>
<defs><marker id="end" viewBox="0 0 6 6" refX="4" refY="3" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0l6 3-6 3z"/></marker></defs>
{"".join(f"{shape}{chr(10)}" for shape in (*arrows, *boxes))}</svg>
"""


def _ways(names: Sequence[str], edges: Sequence[Edge]) -> dict[Edge, list[str]]:
    """Each edge with a stop in every column between its ends, where the arrow has a place of its own."""
    rank = {name: at for at, column in enumerate(columns(names, edges)) for name in column}
    return {
        (first, second): [first, *(f"{first}\0{second}\0{at}" for at in range(rank[first] + 1, rank[second])), second]
        for first, second in edges
    }


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Draw a line from the right of the first box, through the place of each stop, to the left of the last box."""
    x, y = places[0][0] + WIDTH, places[0][1] + HEIGHT / 2
    path = f"M{x:g} {y:g}"
    for at, (left, top) in enumerate(places[1:], 2):
        is_last = at == len(places)
        to_x, to_y = left - 4 if is_last else left, top + HEIGHT / 2
        path += f"C{x + GAP_X * 0.5:g} {y:g} {to_x - GAP_X * 0.5:g} {to_y:g} {to_x:g} {to_y:g}"
        if not is_last:
            path += f"H{left + WIDTH:g}"
        x, y = left + WIDTH, to_y
    return path


def _label(name: str) -> str:
    return name if len(name) <= LABEL_MAX else f"{name[: LABEL_MAX - 1]}…"
