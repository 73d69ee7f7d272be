"""The table: rootdisk against what people use today, side by side in one run. bench/README.md says how to read it.

python -m bench [--rounds N] [--only PART ...] [--small] [--out DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import conversion, delta, guest, lazy, network, project, scale, starts, templates, transfer
from bench.images import Images
from bench.peers import Peers
from bench.picture import picture
from bench.rows import Point, Row
from bench.table import points_table, table
from bench.work import Bench, make_kit
from imagetool.guest import prebuilt

CACHE = Path(__file__).resolve().parents[1] / "cache" / "bench"
FILES, SIZES = (1_000, 10_000, 100_000, 300_000), (10**7, 10**8, 10**9, 4 * 10**9)
SMALL_FILES, SMALL_SIZES = (300,), (4 * 10**6,)
IDLE = {1: 0.5, 50: 1.0}
PARTS = (
    "convert",
    "transfer",
    "delta",
    "rebuild",
    "idle",
    "processors",
    "start",
    "guest",
    "template",
    "lazy",
    "network",
    "many",
    "large",
    "scale",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each row (5)")
    parser.add_argument(
        "--only", nargs="+", action="extend", type=_parts_of, metavar="PART", help=f"some of {', '.join(PARTS)}"
    )
    parser.add_argument("--small", action="store_true", help="tiny images, one run, nothing fetched: does it work?")
    parser.add_argument("--out", type=Path, default=CACHE, help="where result.json and result.svg go (cache/bench)")
    options = parser.parse_args(argv)
    only = [part for some in options.only or [list(PARTS)] for part in some]
    measure(options.rounds, only, options.small, options.out)
    return 0


def _parts_of(text: str) -> list[str]:
    """Parts with commas between, as `doit bench --only a,b` takes them."""
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is not a part: choose from {', '.join(PARTS)}")
    return parts


def measure(rounds: int, only: Sequence[str], small: bool, out: Path) -> None:
    """All chosen parts: the table on standard output, result.json and result.svg in `out`."""
    images = Images(CACHE / "images")
    kit = CACHE / f"kit-{prebuilt.sources()[:16]}"
    make_kit(kit, images.many(30))
    with tempfile.TemporaryDirectory(prefix=".work-", dir=CACHE) as name:
        bench = Bench(
            Path(name), Peers(CACHE / "peers", fetch=not small), 0 if small else rounds, kit, settle=not small
        )
        once = replace(bench, rounds=0)
        parts = _parts(bench, once, images, small)
        rows: list[Row] = []
        points: list[Point] = []
        versions: list[delta.Delta] = []
        for part in (part for part in PARTS if part in only):
            print(f"{part} …", file=sys.stderr, flush=True)
            if part == "scale":
                points = scale.points(once, images, *((SMALL_FILES, SMALL_SIZES) if small else (FILES, SIZES)))
            elif part == "delta":
                versions = delta.deltas(once, images, small)
            else:
                rows += parts[part]()
            _write(out, bench.rounds, rows, points, versions)  # so far: a long run may be stopped
    if rows:
        print(table(rows))
    if versions:
        print(f"\n{delta.table(versions)}")
    if points:
        print(f"\n{points_table(points)}")


def _write(
    out: Path, rounds: int, rows: Sequence[Row], points: Sequence[Point], versions: Sequence[delta.Delta]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": {"processors": os.cpu_count(), "system": platform.freedesktop_os_release().get("PRETTY_NAME", "")},
        "rounds": rounds,
        "rows": [row.to_json() for row in rows],
        "points": [point.to_json() for point in points],
        "versions": [version.to_json() for version in versions],
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "result.svg").write_text(picture(rows, points))


def _parts(bench: Bench, once: Bench, images: Images, small: bool) -> dict[str, Callable[[], list[Row]]]:
    """Each part's rows, by name. What takes minutes a run is run once."""
    app = images.app if not small else lambda: images.many(300)
    changed = images.app_changed if not small else lambda: images.many(301)
    many, big = (SMALL_FILES[-1], SMALL_SIZES[-1]) if small else (FILES[-1], SIZES[-1])
    by_umoci = conversion.artifact_by_umoci
    return {
        "convert": lambda: [
            conversion.disk_by_microsandbox(bench, app()),
            conversion.disk_by_umoci(bench, app()),
            by_umoci(bench, app(), "OCI → artifact", {"wall": 0.13, "cpu": 0.35}),
        ],
        "transfer": lambda: transfer.rows(bench, app()),
        "rebuild": lambda: project.rebuilds(bench, app(), changed()),
        "idle": lambda: project.idle(bench, images, IDLE if not small else {1: 0.5, 3: 1.0}),
        "processors": lambda: [
            project.processors(bench, app()),
            project.parallel(bench, [images.many(300 + n) if small else images.app_version(n) for n in range(1, 9)]),
        ],
        "start": lambda: starts.rows(bench, app()),
        "guest": lambda: guest.rows(bench),
        "template": lambda: templates.rows(bench),
        "lazy": lambda: lazy.rows(bench, app(), small),
        "network": lambda: network.rows(bench, network.SMALL_BYTES if small else network.BYTES),
        "many": lambda: [by_umoci(once, images.many(many), f"OCI → artifact, {many:,} files", {})],
        "large": lambda: [
            by_umoci(once, images.big(big), f"OCI → artifact, {big / 1e9:g} GB", {"wall": 0.22}),
            conversion.disk_limit(once, images.big(big)),
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
