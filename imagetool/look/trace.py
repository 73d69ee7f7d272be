"""Make a boot trace: boot an artifact, record which bytes of its disk are read, and name the files that they belong to."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from imagetool.ext4.reader import Reader
from imagetool.look.map.grid import Run
from imagetool.packing.boot_trace import METADATA, TITLE
from rootdisk.errors import RootdiskError
from rootdisk.ext4.format import EXT4_EXTENTS_FL
from rootdisk.system import process
from rootdisk.text import one_line

_TIMED_OUT, _FAILED = 124, 125
TRACE_S = 30.0  # of a boot, by default
_MARGIN_S = 600  # for the fetch, and for a host without KVM


def record(command: Sequence[str], work: Path, seconds: float) -> Path:
    """Boot by `command`, which begins with PYTHON -m runner boot, and return the file of its reads.

    `work` is an empty directory. The boot ends after `seconds` at the latest.

    Raises:
        RootdiskError: It does not boot.
    """
    reads = work / "reads"
    head, tail = command[:4], command[4:]
    options = ["--pull", "lazy", "--record-reads", str(reads), "--timeout", f"{seconds:g}", "--cold", "--quiet"]
    try:
        done = process.run(
            [*head, *options, *tail],
            env={**os.environ, "ROOTDISK_STORE": str(work / "store")},
            timeout_s=seconds + _MARGIN_S,
        )
    except TimeoutError as err:
        raise RootdiskError(f"the boot did not end within {seconds + _MARGIN_S:g} s") from err
    if done.status == _FAILED or not reads.exists():
        last = done.complaint.strip().splitlines()[-1:] or ["no reason given"]
        raise RootdiskError(f"the boot failed: {one_line(last[0])}", "try it: runner boot ARTIFACT")
    return reads


def paths_read(reader: Reader, reads: Sequence[Run]) -> list[str]:
    """Return what `reads` belong to, in the order of the first read of each: paths, and METADATA for everything else."""
    owners: list[tuple[int, int, str]] = []
    seen: set[int] = set()
    size = reader.block_size
    for path, node in reader.walk():
        if node.number in seen or node.type != stat.S_IFREG or not node.flags & EXT4_EXTENTS_FL:
            continue
        seen.add(node.number)
        name = os.fsdecode(path)
        if name.isprintable():  # a line of text holds no other name
            owners += [(e.physical * size, (e.physical + e.count) * size, name) for e in reader.extents(node)]
    owners.sort()
    starts = [start for start, _, _ in owners]
    names: dict[str, None] = {}
    for read in reads:
        at = read.offset
        place = max(0, bisect_right(starts, at) - 1)
        while at < read.end:
            start, end, name = owners[place] if place < len(owners) else (read.end, read.end, "")
            if at < start:
                names[METADATA] = None
                at = start
            elif at < end:
                names[name] = None
                at = end
            place += at >= end
    return list(names)


def text_of(paths: Sequence[str]) -> str:
    """Return the trace as text."""
    return "".join(f"{line}\n" for line in (TITLE, *paths))
