"""Resources that a running sandbox uses on its host, and what is known of it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.errors import RootdiskError
from runner.sandbox import lookup, orders
from runner.sandbox.state import State
from runner.store import events
from runner.store.limits import disk_bytes
from runner.store.store import Store

_TICKS = os.sysconf("SC_CLK_TCK")
_ANSWER_S = 5.0  # for a guest that is asked for its counters
_TRANSFER = re.compile(rb"^(read_bytes|write_bytes): ([0-9]+)$", re.MULTILINE)
_INTERFACE = re.compile(rb"^\s*([^:\s]+):\s*(.*)$", re.MULTILINE)
_DOCUMENT_MAX_BYTES = 64 << 10


class Usage(NamedTuple):
    """Resources of a sandbox at a moment."""

    name: str
    at: float  # time.monotonic()
    processor_s: float  # of all its processes on the host, since their start
    memory_bytes: int  # proportional set size of all its processes
    memory_limit_bytes: int  # of the guest
    disk_bytes: int  # of the sandbox's own disk file
    received_bytes: int | None  # by the guest, from its network; None if it does not say
    sent_bytes: int | None
    read_bytes: int  # by its processes from the host's disks
    written_bytes: int
    processes: int

    def to_json(self, earlier: Usage | None) -> dict[str, Any]:
        """Return the value for `stats --json`. Processors are measured since `earlier`."""
        fields = self._asdict()
        del fields["at"]
        span_s = self.at - earlier.at if earlier is not None else 0
        fields["cpu_percent"] = (
            round(100 * max(0.0, self.processor_s - earlier.processor_s) / span_s, 1) if earlier and span_s > 0 else 0.0
        )
        return fields


def sandbox_document(store: Store, name: str) -> dict[str, Any]:
    """Return what `inspect` shows of a sandbox, with its last event."""
    sandbox = lookup.find_any(store, name)
    since = sandbox.created if isinstance(sandbox, State) else 0.0
    return {**sandbox.to_json(), "last_event": events.last_of(store.root, name, since)}


def usage(state: State, *, network: bool = True) -> Usage | None:
    """Measure a running sandbox; None if it ends meanwhile."""
    processor_s, memory, count, read, written = 0.0, 0, 0, 0, 0
    for pid in _family(state.pid):
        with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
            # proc_pid_stat(5): after the name, utime and stime are the fields 12 and 13
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            processor_s += (int(fields[11]) + int(fields[12])) / _TICKS
            count += 1
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii", "replace").splitlines()
            memory += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) << 10
            transfers = dict(_TRANSFER.findall(Path(f"/proc/{pid}/io").read_bytes()))  # proc_pid_io(5)
            read += int(transfers.get(b"read_bytes", 0))
            written += int(transfers.get(b"write_bytes", 0))
    if not count:
        return None
    counters = _network(state) if network and state.spec.network != "none" else None
    received, sent = counters or (None, None)
    limit = state.spec.memory_mib << 20
    disk = disk_bytes(state.folder)
    return Usage(state.name, time.monotonic(), processor_s, memory, limit, disk, received, sent, read, written, count)


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that it has started."""
    yield pid
    with contextlib.suppress(OSError, ValueError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))


def _network(state: State) -> tuple[int, int] | None:
    """Ask the guest how much its interfaces have received and sent; None if it does not answer.

    Its init reads the file, so the image needs no program for it. The numbers are the guest's word.
    """
    from runner.channel.copies.contents import read_file

    def connect() -> Any:
        """Connect to the keeper; every wait has an end."""
        sock = orders.connect(state)
        sock.settimeout(_ANSWER_S)
        return sock

    try:
        text = read_file(connect, "/proc/net/dev", _DOCUMENT_MAX_BYTES)
    except (RootdiskError, OSError):
        return None
    received = sent = 0
    for name, numbers in _INTERFACE.findall(text):
        fields = numbers.split()
        if name != b"lo" and len(fields) >= 9 and fields[0].isdigit() and fields[8].isdigit():
            received += int(fields[0][:20])
            sent += int(fields[8][:20])
    return received, sent
