"""The table: rootdisk against what people use today, side by side in one run.

    python bench/bench.py [--rounds N] [--image REFERENCE] [--json FILE] [--svg FILE] [--small]

Ratios, because machines are noisy. A peer that is not installed is reported as missing. Before times count, each
contender's disk is compared with ours by content (as root; else the row says so).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import images
from bench.measure import Contender, Run, interleaved, ratios
from bench.picture import bars
from bench.same import differences

PEER_TOOLS = ("umoci", "mke2fs", "zstd")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", action="append", help="oci:DIR:TAG; the demo's source when left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--small", action="store_true", help="one tiny image, one round: does everything run?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rootdisk-bench-", dir=os.environ.get("BENCH_DIR")) as name:
        work = Path(name)
        if options.small:
            options.image, options.rounds = [images.many(work / "image", 300)], 1
        rows = []
        for image in options.image or ["oci:cache/demo/source:latest"]:
            rows += measure(image, work, options.rounds)
        show(rows)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
        if options.svg:
            options.svg.write_text(bars(rows))
    return 0


def measure(image: str, work: Path, rounds: int) -> list[dict[str, object]]:
    """Rows of one image: both kinds of work, ours by the peers'."""
    missing = [tool for tool in PEER_TOOLS if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
    tool = [sys.executable, "-m", "imagetool"]
    disk, out = work / "ours.ext4", work / "ours"
    peer = work / "peer"
    script = Path(__file__).with_name("umoci-mke2fs.sh")

    def clean() -> None:
        for path in (disk, peer, out):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    source = image.removeprefix("oci:")
    work_kinds = {
        "OCI → ext4": (
            Contender("rootdisk", [*tool, "disk", "--plain", image, str(disk)], clean),
            Contender("umoci + mke2fs", ["sh", str(script), source, str(peer), "disk"], clean),
        ),
        "OCI → artifact": (
            Contender("rootdisk", [*tool, "build", image, f"oci:{out}:1"], clean),
            Contender("umoci + mke2fs + zstd", ["sh", str(script), source, str(peer), "zst"], clean),
        ),
    }
    rows: list[dict[str, object]] = []
    for kind, (ours, theirs) in work_kinds.items():
        if missing:
            rows.append({"image": image, "work": kind, "peer": theirs.name, "missing": missing})
            continue
        runs = interleaved([ours, theirs], rounds)
        row = _row(image, kind, theirs.name, runs[ours.name], runs[theirs.name])
        if kind == "OCI → ext4":
            from bench.measure import run

            run(ours)
            subprocess.run(theirs.command, check=True, capture_output=True)
            row["differences"] = differences(disk, peer / "disk.ext4")
        rows.append(row)
    clean()
    return rows


def _row(image: str, kind: str, peer: str, ours: list[Run], theirs: list[Run]) -> dict[str, object]:
    return {
        "image": image,
        "work": kind,
        "peer": peer,
        "wall_ratio": ratios(ours, theirs, lambda run: run.wall_s),
        "cpu_ratio": ratios(ours, theirs, lambda run: run.cpu_s),
        "wall_s": [min(run.wall_s for run in ours), min(run.wall_s for run in theirs)],
        "cpu_s": [min(run.cpu_s for run in ours), min(run.cpu_s for run in theirs)],
        "rss_mb": [max(run.rss_bytes for run in ours) >> 20, max(run.rss_bytes for run in theirs) >> 20],
        "written_mb": [max(run.written_bytes for run in ours) >> 20, max(run.written_bytes for run in theirs) >> 20],
    }


def show(rows: list[dict[str, object]]) -> None:
    """The table, on standard output."""
    print(
        f"{'work':16} {'against':22} {'wall ratio':20} {'cpu ratio':20} {'wall s':13} {'RSS MB':11} {'written MB':12} same"
    )
    for row in rows:
        if "missing" in row:
            print(f"{row['work']:16} {row['peer']:22} missing: {', '.join(row['missing'])}")  # type: ignore[arg-type]
            continue
        wall, cpu = (f"{r[1]:.3f} ({r[0]:.3f}–{r[2]:.3f})" for r in (row["wall_ratio"], row["cpu_ratio"]))  # type: ignore[index]
        seconds = "{:.2f} / {:.2f}".format(*row["wall_s"])  # type: ignore[misc]
        rss, written = ("{} / {}".format(*row[key]) for key in ("rss_mb", "written_mb"))  # type: ignore[misc]
        found = row.get("differences")
        same = (
            ""
            if "differences" not in row
            else "not root"
            if found is None
            else "yes"
            if not found
            else f"{found} differ"
        )
        print(f"{row['work']:16} {row['peer']:22} {wall:20} {cpu:20} {seconds:13} {rss:11} {written:12} {same}")


if __name__ == "__main__":
    sys.exit(main())
