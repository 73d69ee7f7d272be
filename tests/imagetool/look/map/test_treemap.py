"""Treemaps and grids, the pure parts of the map, against plain countings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imagetool.look.map.grid import Run, grid, weights, without
from imagetool.look.map.treemap import Box, squarified, tiles, tree

KIB = 1024
runs = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60), st.integers(0, 2)), max_size=12)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.integers(10, 2000), st.integers(10, 2000))
def test_boxes_fill_the_room_and_do_not_overlap(sizes: list[int], width: int, height: int) -> None:
    sizes.sort(reverse=True)
    found = squarified(sizes, Box(0, 0, width, height))
    assert len(found) == len(sizes)
    room, total = width * height, sum(sizes)
    for box, size in zip(found, sizes, strict=True):
        assert abs(box.area - room * size / total) < 1e-6 * room
        assert box.x >= -1e-6 <= box.y
        assert box.x + box.width <= width * (1 + 1e-9)
        assert box.y + box.height <= height * (1 + 1e-9)
    for number, a in enumerate(found):
        for b in found[number + 1 :]:
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert min(across, down) < 1e-6 * max(width, height)


def test_they_are_near_to_squares() -> None:
    found = squarified([6, 6, 4, 3, 2, 2, 1], Box(0, 0, 600, 400))  # the paper's example
    assert max(max(b.width / b.height, b.height / b.width) for b in found) < 3


def test_a_treemap_of_very_many_files_is_small_and_complete() -> None:
    files = [(f"/usr/{n % 97}/{n % 31}/{n}", 1 + n % 5000, n % 3) for n in range(50_000)]
    found = list(tiles(tree(files), Box(0, 0, 960, 560), most=300, head=15, rim=2))
    assert 50 < len(found) < 600
    leaves = [tile for tile in found if tile.what != "open"]
    assert sum(tile.size for tile in leaves) == sum(size for _, size, _ in files)
    assert sum(tile.files for tile in leaves) == len(files)


def test_a_very_deep_directory() -> None:
    deep = "/d" * 5000
    (tile,) = (
        tile for tile in tiles(tree([(f"{deep}/f", 5, 0)]), Box(0, 0, 300, 300), most=9, head=9, rim=1) if tile.depth
    )
    assert (tile.what, tile.path) == ("file", f"{deep}/f")


@given(runs, st.integers(2, 40))
def test_a_grid_covers_the_disk_once(drawn: list[tuple[int, int, int]], most: int) -> None:
    size = 512 * 4 * KIB
    data = [Run(at * 4 * KIB, length * 4 * KIB, kind) for at, length, kind in drawn]
    cells = grid(data, size, most)
    assert len(cells) <= most
    assert [cell.end for cell in cells] == [*(cell.start for cell in cells[1:]), size]
    assert cells[0].start == 0
    for cell in cells:
        assert cell.hole != any(run.offset < cell.end and run.end > cell.start for run in data)


@given(runs)
def test_weights_count_every_byte(drawn: list[tuple[int, int, int]]) -> None:
    data = [Run(at * KIB, length * KIB, kind) for at, length, kind in drawn]
    cells = grid(data, 1024 * KIB, 30)
    found = weights(cells, data)
    for cell, weight in zip(cells, found, strict=True):
        for kind in range(3):
            expected = sum(max(0, min(r.end, cell.end) - max(r.offset, cell.start)) for r in data if r.kind == kind)
            assert weight.get(kind, 0) == expected


def test_a_disk_of_16_tib_is_as_many_cells() -> None:
    data = [Run(n << 34, 1 << 20, 0) for n in range(1024)]
    assert len(grid(data, 16 << 40, 1000)) <= 1000


@given(runs, st.lists(st.integers(0, 500), max_size=12, unique=True))
def test_without_holes(drawn: list[tuple[int, int, int]], edges: list[int]) -> None:
    edges.sort()
    holes = [Run(a, b - a, 0) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    inside = {n for hole in holes for n in range(hole.offset, hole.end)}
    for at, length, kind in drawn:
        left = without([Run(at, length, kind)], holes)
        assert [n for run in left for n in range(run.offset, run.end)] == [
            n for n in range(at, at + length) if n not in inside
        ]
