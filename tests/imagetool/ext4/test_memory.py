"""What a plan takes beside its tree: no block of metadata is kept, each is made when it is written."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from imagetool.ext4.plan import DiskOptions, plan
from tests.support import disks
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, pax, symlink

# As `python -m imagetool`, and then the most memory that it had: ru_maxrss has that of the tests' own process before exec.
MEASURED = """
import re, sys
from imagetool.__main__ import main
try:
    sys.exit(main())
finally:
    sys.stderr.write(re.search("VmHWM:(.*)", open("/proc/self/status").read())[1])
"""
COUNT = 10_000
MIB = 1 << 20


def attribute(n: int) -> bytes:
    """Too large for an inode, and no other inode's."""
    return pax([(b"SCHILY.xattr.user.a", b"%08d" % n * 20)])


CASES: dict[str, Callable[[int], bytes]] = {
    "directories": lambda n: directory(b"%d" % n),
    "attribute blocks": lambda n: attribute(n) + file(b"%d" % n),
    "long link targets": lambda n: pax([(b"linkpath", b"%d/" % n * 20)]) + symlink(b"%d" % n, b"x"),
    "names in one directory": lambda n: file(b"a-name-that-is-a-little-longer-%d" % n),
}


@pytest.mark.parametrize("case", CASES)
def test_a_plan_keeps_no_blocks(case: str) -> None:
    tree, sources = disks.tree_of(b"".join(map(CASES[case], range(COUNT))))
    tracemalloc.start()
    try:
        made = plan(tree, DiskOptions(256 * MIB, disks.UUID, identity=b"layers"))
        kept, most = tracemalloc.get_traced_memory()
        assert kept < 200 * COUNT
        assert most < 600 * COUNT  # names are sorted by their hashes
        tracemalloc.reset_peak()
        for chunk in made.chunks:
            chunk.render(sources)
        assert tracemalloc.get_traced_memory()[1] < kept + 4 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "count", "limit"), [("directories", 400_000, 300), ("attribute blocks", 200_000, 300), ("files", 300_000, 180)]
)  # fmt: skip
def test_a_whole_build(kind: str, count: int, limit: int, tmp_path: Path) -> None:
    """MB of memory at most for an image of many entries, a thousand to a directory."""
    layers = []
    for first in range(0, count, 100_000):
        tar = bytearray()
        for n in range(first, first + 100_000):
            place = b"%03d/%06d" % (n // 1000, n)
            if n % 1000 == 0:
                tar += directory(b"%03d" % (n // 1000))
            if kind == "directories":
                tar += directory(place)
            elif kind == "files":
                tar += file(place, b"%d" % n * (n % 100))
            else:
                tar += attribute(n) + file(place)
        layers.append(bytes(tar) + END)
    write_layout(tmp_path / "l", "t", layers)
    del layers, tar
    argv = [sys.executable, "-c", MEASURED, "build", "--quiet", f"oci:{tmp_path}/l:t", f"oci:{tmp_path}/out:t"]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "ROOTDISK_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-2]) * 1024 < limit * 1_000_000
