"""The bench's table of tiny images: every row is there, and who is compared has made the same. Times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from tests.support.commands import ROOT

ROWS = {
    "registry → ext4": "microsandbox, flat",
    "OCI → ext4": "umoci + mke2fs -d",
    "OCI → artifact": "umoci + mke2fs -d + zstd -3 -T0",
    "registry → raw disk": "oras pull + zstd -d",
    "registry → synced raw disk": "oras pull + zstd -d + sync",
    "registry → raw disk, 100 MB/s": "oras pull + zstd -d",
    "layout → registry": "oras cp",
    "rebuild: top layer": "full build",
    "rebuild: env": "full build",
    "rebuild: TLS": "full build",
    "rebuild: owners of a path": "full build",
    "doit build, nothing to do, 1 image": "",
    "doit build, nothing to do, 3 images": "",
    "OCI → artifact, two processors": "one processor",
    "doit build of 8 images, -n 2": "-n 1",
    "runner --help": "",
    "runner boot, warm, to QEMU's start": "",
    "guest, power-on to its program": "smallest init",
    "guest, power-on by its vmlinux": "bzImage",
    "guest: QEMU, firmware, unpacking": "",
    "guest: kernel": "",
    "guest: init": "",
    "guest, --read-only with dm-verity": "--read-only",
    "runner boot, from a template": "runner boot --cold",
    "runner boot, from a template, to its first output": "",
    "clock of a guest from a template, off by": "",
    "runner boot, the first": "ROOTDISK_TEMPLATES=0",
    "runner boot --from and exec": "runner boot --cold and exec",
    "1 MiB to a guest, --allow": "--network user",
    "1 MiB from a guest, --allow": "--network user",
    "lazy boot, empty store, 100 MB/s, 20 ms": "warm boot + 0.5 s",
    "lazy boot or pull first, 100 MB/s, 20 ms": "--pull missing",
    "lazy boot, empty store, 12 MB/s, 40 ms": "warm boot + 0.5 s",
    "lazy boot or pull first, 12 MB/s, 40 ms": "--pull missing",
    "lazy boot, without a fill": "",
    "clone by overlay, 8 GiB": "",
    "clone by reflink, 8 GiB": "",
    "clone by copy, 8 GiB": "",
    "clone by overlay, grown to 64 GiB": "",
    "clone by overlay, grown to 1024 GiB": "",
    "OCI → artifact, 300 files": "umoci + mke2fs -d + zstd -3 -T0",
    "OCI → artifact, 0.004 GB": "umoci + mke2fs -d + zstd -3 -T0",
    "the disk: write and sync 2 MB": "",
}
FETCHED = {
    "microsandbox, flat",
    "oras pull + zstd -d",
    "oras pull + zstd -d + sync",
    "oras cp",
}  # in a new clone these are missing


# Two ways of the same work that has no output.
STARTS = {
    "bzImage",
    "--read-only",
    "runner boot --cold",
    "ROOTDISK_TEMPLATES=0",
    "runner boot --cold and exec",
    "--network user",
}

# The whole table takes a minute, and says nothing of rootdisk itself.
PARTS = [pytest.param((), id="all", marks=pytest.mark.nightly), pytest.param(("convert", "start", "scale"), id="some")]


class Result(NamedTuple):
    is_whole: bool
    json: dict[str, Any]
    table: str


@pytest.fixture(scope="module", params=PARTS)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("bench")
    only = ("--only", *request.param) if request.param else ()
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--small", *only, "--out", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ElementTree.parse(out / "result.svg")
    return Result(not only, json.loads((out / "result.json").read_bytes()), done.stdout)


def test_every_row_is_there(result: Result) -> None:
    rows = {row["work"]: row["against"] for row in result.json["rows"]}
    assert rows == ROWS if result.is_whole else {"registry → ext4", "runner --help"} < rows.keys() < ROWS.keys()
    for row in result.json["rows"]:
        assert row["against"] == ROWS[row["work"]]
        assert f"| {row['work']} " in result.table
        assert "missing" not in row or row["against"] in FETCHED or "reflink" in row["work"], row


def test_outputs_are_the_same(result: Result) -> None:
    for row in result.json["rows"]:
        if row["against"] and row["against"] not in STARTS and "missing" not in row:
            assert row["same"].startswith("yes" if os.geteuid() == 0 else ("yes", "not checked")), row


def test_cost_by_size_is_there_in_both_units(result: Result) -> None:
    assert [point["unit"] for point in result.json["points"]] == ["files", "bytes"]
