"""Goals and what is drawn of them, of made-up figures."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.measure import Measured, Run
from bench.picture import picture
from bench.rows import Point, Row
from bench.table import points_table, table


def measured(*seconds: float, peak: int = 100_000_000) -> Measured:
    return Measured(tuple(Run(0, wall, wall / 2, peak, 5_000_000) for wall in seconds), peak)


GOALS = {"wall": 0.5, "cpu": 0.3, "peak": 300e6}
ROW = Row("a <disk>", "peer & co", GOALS, measured(1, 2, 9), measured(4, 5, 6), "yes")
POINTS = [Point("files", 10**n, 0.1 * 2**n, 1, 1 << 27) for n in range(1, 4)] + [Point("bytes", 1 << 30, 3, 3, 1 << 28)]


def test_ratios_are_of_pairs_and_the_median_meets_the_goal() -> None:
    assert ROW.spread("wall") == (0.25, 0.4, 1.5)
    assert [ROW.met(figure) for figure in ("wall", "cpu", "peak", "written")] == [True, False, True, None]
    other = Row(ROW.work, ROW.against, GOALS, ROW.ours, ROW.theirs, "NO: 1 paths", fault=True)
    assert [other.met(figure) for figure in GOALS] == [False, False, False]


def test_nobody_to_compare_with_is_seconds() -> None:
    row = Row("start", "", {"wall": 2.5}, measured(1, 2, 3))
    assert row.spread("wall") == (1, 2, 3)
    assert row.met("wall")
    assert "2.000 s (1.000–3.000) ≤ 2.5: yes" in table([row])


def test_the_table_says_goals_and_who_is_missing() -> None:
    lines = table([ROW, Row("fetch", "oras", missing="oras not fetched")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "0.400 (0.250–1.500) ≤ 0.5: yes | 0.400 (0.250–1.500) ≤ 0.3: NO" in lines[2]
    assert [cell.strip() for cell in lines[2].split("|")[5:10]] == [
        "100 / 100 ≤ 300: yes", "2.00 / 5.00", "1.00 / 2.50", "5 / 5", "yes"
    ]  # fmt: skip
    assert "missing: oras not fetched" in lines[3]


def test_the_picture_is_well_formed_and_has_all() -> None:
    text = picture([ROW, Row("fetch", "oras", missing="x")], POINTS)
    words = ["".join(node.itertext()) for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert "a <disk> · peer & co" in words
    assert "missing: x" in words
    assert "1,000" in words
    assert "prefers-color-scheme: dark" in text
    assert points_table(POINTS).count("\n") == len(POINTS) + 1
