"""The commands snapshot and snapshots, and the removal of snapshots."""

from __future__ import annotations

import argparse
import sys
import time

from rootdisk.cli.rows import write_names, write_rows
from rootdisk.cli.table import shortened, table
from rootdisk.system import process
from rootdisk.text import one_line, printable
from runner.commands.listing import REFERENCE_WIDTH, age
from runner.options.values import sandbox_name
from runner.sandbox import lookup, snapshot_taking, snapshots
from runner.sandbox.snapshots import Snapshot, Unreadable
from runner.store.store import Store


def snapshot_command(options: argparse.Namespace) -> int:
    """Save a running sandbox, or the disk of any."""
    process.protect_secrets()
    name = sandbox_name(options.snapshot, "SNAPSHOT")
    store = Store.open()
    has_memory = not options.without_memory
    taken = snapshot_taking.take(store, lookup.find(store, options.name), name, has_memory=has_memory)
    if has_memory:
        stood = f"the sandbox stood still for {taken.paused_s:.2f} s"
        text = f"{stood}; what its programs have in memory, secrets too, is in the snapshot"
        print(f"runner: {one_line(text)}", file=sys.stderr)
    write_names([taken.name], as_json=options.json)
    return 0


def snapshots_command(options: argparse.Namespace) -> int:
    """List snapshots."""
    store = Store.open()
    snapshots.sweep(store)
    rows = list(snapshots.all_of(store))
    if options.json:
        write_rows([row.to_json() for row in rows])
    elif options.quiet:
        for row in rows:
            print(printable(row.name))
    else:
        headers = ("NAME", "SANDBOX", "ARTIFACT", "AGE", "MEMORY", "STORED")
        for line in table(headers, [_line(row) for row in rows], right=("AGE", "MEMORY", "STORED")):
            print(line)
    return 0


def remove(options: argparse.Namespace) -> int:
    """Remove the snapshots that `rm --snapshot` names."""
    store = Store.open()
    names = list(dict.fromkeys(options.name))
    for name in names:
        snapshots.check_removable(store, name, force=options.force)
    for name in names:
        snapshots.remove(store, name)
    write_names(names, as_json=options.json)
    return 0


def _line(row: Snapshot | Unreadable) -> tuple[str, ...]:
    name = printable(row.name)
    if isinstance(row, Unreadable):
        return name, "", f"unreadable: {row.reason}", "", "", ""
    spec = row.state.spec
    memory = f"{spec.memory_mib} MiB" if row.memory is not None else "none"
    reference = shortened(printable(spec.reference), REFERENCE_WIDTH)
    stored = f"{row.disk_bytes / 1e6:.1f} MB"
    return name, printable(row.source), reference, age(time.time() - row.created), memory, stored
