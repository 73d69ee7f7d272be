"""doit graph: every task and edge is in the picture, once, and nothing lies on anything else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imagetool.tasks.graph import columns, direct, drawn
from tests.support.browser import measured, needs_browser
from tests.support.commands import run

SVG = "{http://www.w3.org/2000/svg}"
edges = st.sets(st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda e: e[0] < e[1]), max_size=30)


@given(edges)
def test_edges_go_to_the_right_and_boxes_do_not_overlap(drawn_edges: set[tuple[int, int]]) -> None:
    found = sorted((f"t{a:02}", f"t{b:02}") for a, b in drawn_edges)
    names = sorted({name for edge in found for name in edge})
    rank = {name: at for at, column in enumerate(columns(names, found)) for name in column}
    assert sorted(rank) == names
    assert all(rank[a] < rank[b] for a, b in found)
    svg = ElementTree.fromstring(drawn(names, found))
    boxes = [tuple(float(box.attrib[k]) for k in ("x", "y", "width", "height")) for box in svg.iter(f"{SVG}rect")]
    assert len(boxes) == len(names)
    for at, (x, y, width, height) in enumerate(boxes):
        assert not any(
            x < x2 + w2 and x2 < x + width and y < y2 + h2 and y2 < y + height for x2, y2, w2, h2 in boxes[at + 1 :]
        )


@given(edges)
def test_no_arrow_passes_behind_a_box(drawn_edges: set[tuple[int, int]]) -> None:
    """Curves lie between columns, and a straight part in a column has a row of its own."""
    found = sorted((f"t{a:02}", f"t{b:02}") for a, b in drawn_edges)
    names = sorted({name for edge in found for name in edge})
    svg = ElementTree.fromstring(drawn(names, found))
    boxes = [tuple(float(box.attrib[k]) for k in ("x", "y", "width", "height")) for box in svg.iter(f"{SVG}rect")]
    arrows = [path.attrib["d"] for path in svg.iter(f"{SVG}path") if "marker-end" in path.attrib]
    assert len(arrows) == len(direct(found))
    for arrow in arrows:
        parts = re.findall(r"([MCH])([-0-9. ]+)", arrow)
        at = (0.0, 0.0)
        for kind, text in parts:
            numbers = [float(number) for number in text.split()]
            to = (numbers[0], at[1]) if kind == "H" else (numbers[-2], numbers[-1])
            for x, y, width, height in boxes:
                if kind == "C":  # its control points lie between its ends
                    assert min(at[0], to[0]) >= x + width or max(at[0], to[0]) <= x
                elif kind == "H":
                    assert not (at[0] < x + width and x < to[0] and y < at[1] < y + height)
            at = to


@given(edges)
def test_needless_edges_are_left_out_and_no_others(all_edges: set[tuple[int, int]]) -> None:
    def reached(found: set[tuple[int, int]]) -> set[tuple[int, int]]:
        while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
            found = found | more
        return found

    kept = {(int(a), int(b)) for a, b in direct(sorted((str(a), str(b)) for a, b in all_edges))}
    assert reached(kept) == reached(all_edges)
    assert all(edge not in reached(kept - {edge}) for edge in kept)


def test_of_two_images_or_one(copied: Path) -> None:
    (copied / "images.toml").write_text('[image.a]\nsource = "oci:x:1"\n[image.b]\nsource = "oci:y:1"\n')
    done = run("doit", "graph", cwd=copied, PYTHONPATH=str(copied))
    assert done.returncode == 0, done.stderr
    both = (copied / "cache/graph.svg").read_text()
    assert set(re.findall(r"<g><title>([^<]*)", both)) > {"resolve:a", "disk:a", "disk:b", "publish:b", "build:b"}
    assert "disk:a before pack:a" in both
    assert run("doit", "graph", cwd=copied, PYTHONPATH=str(copied), PYTHONHASHSEED="5").returncode == 0
    assert (copied / "cache/graph.svg").read_text() == both
    assert run("doit", "graph", "--only", "b", cwd=copied, PYTHONPATH=str(copied)).returncode == 0
    one = set(re.findall(r"<g><title>([^<]*)", (copied / "cache/graph.svg").read_text()))
    assert "disk:b" in one
    assert "disk:a" not in one
    done = run("doit", "graph", "--only", "c", cwd=copied, PYTHONPATH=str(copied))
    assert done.returncode != 0
    assert "no image c" in done.stdout + done.stderr


@needs_browser
def test_names_are_in_their_boxes(tmp_path: Path) -> None:
    names = [f"{task}:{'a-rather-long-name' * 2}" for task in ("disk", "pack")]
    page = tmp_path / "graph.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><main>{drawn(names, [(names[1], names[0])])}</main>")
    (found,) = measured(page, tmp_path, widths=[1280], dark=True)
    assert set(found["faults"]) <= {"a tap says nothing"}  # a picture alone has no script
    assert found["texts"] == 2
