"""Records for the slot: those of this start, those that older inits do not know, and the order of mounts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.artifact.format import SLOT_MAX_BYTES
from rootdisk.durable import read_file
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.records import Record, unpack
from rootdisk.text import printable
from runner.machine import resolver
from runner.machine.model import Share
from runner.sandbox.state import Spec, State

if TYPE_CHECKING:
    from runner.network.secrets import Secrets

# Records that inits of older artifacts do not know, with their options.
OPTIONS = {
    "tmpfs": "--tmpfs",
    "shm-size": "--shm-size",
    "ulimit": "--ulimit",
    "host": "--add-host",
    "dns": "--dns",
    "dns-search": "--dns-search",
    "dns-option": "--dns-option",
    "pid1": "--pid1 and --init",
    "mount-file": "--volume of a file",
}
_LOCAL_MAC = 0x02  # first byte of an address that no manufacturer gives (IEEE 802)
_MOUNTS = ("mount", "mount-file", "tmpfs")


def identity() -> list[Record]:
    """Return the records by which a new sandbox is another machine than all others."""
    mac = bytes([_LOCAL_MAC]) + os.urandom(5)
    return [("machine-id", os.urandom(16).hex().encode()), ("mac", mac.hex(":").encode())]


def records_of(state: State) -> list[Record]:
    """Return the records for every start of a kept sandbox.

    Raises:
        RootdiskError: They cannot be read.
    """
    try:
        return unpack(read_file(state.folder / "records", SLOT_MAX_BYTES))
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        hint = "its disk can still be read with imagetool"
        raise RootdiskError(f"sandbox {state.name} cannot start: its file `records`: {why}", hint) from err


def complete(settings: Sequence[Record], spec: Spec, secrets: Secrets | None = None) -> list[Record]:
    """Return all records for a guest: the settings, and those that are new at every start."""
    if not spec.allow:
        names = resolver.records(spec.network, settings, resolver.Resolver.of_host())
        return in_order([*settings, *_start_records(spec), *names])
    from rootdisk.network.rules import parse_rule
    from runner.network import proxy

    own = [("resolv", f"nameserver {proxy.LOCAL}\n".encode()), *proxy.guest_records(list(map(parse_rule, spec.allow)))]
    if secrets is not None:
        from runner.sandbox.secrets import records

        own += records(secrets)
    # The keeper knows the addresses of --add-host; in the guest such a name has one of ours, as every other.
    return in_order([*(record for record in settings if record[0] != "host"), *_start_records(spec), *own])


def _start_records(spec: Spec) -> list[Record]:
    """Return the records that are new at every start."""
    start_records = [
        ("entropy", os.urandom(64).hex().encode()),
        ("time", f"{time.time():.3f}".encode()),
        ("network", spec.network.encode()),
    ]
    start_records += [("stdin", b"1")] if spec.interactive else []
    start_records += [("tty", b"1")] if spec.terminal else []
    start_records += [("balloon", b"1")] if has_balloon(spec) else []
    for share in shares(spec):
        key = "mount-file" if share.is_file else "mount"
        start_records.append((key, os.fsencode(f"{share.tag}\t{share.guest}\t{'ro' if share.read_only else 'rw'}")))
    return start_records


def has_balloon(spec: Spec) -> bool:
    """Return whether the machine has a balloon, by which the guest gives free memory back to the host.

    Not if it may come from a template: QEMU gives memory back by a hole in its file, and that of a template is sealed.
    """
    return spec.cold or bool(spec.volumes)


def shares(spec: Spec) -> tuple[Share, ...]:
    """Return the volumes of a sandbox as shares of its machine."""
    return tuple(
        Share(
            f"volume{n}",
            Path(path),
            guest,
            read_only,
            frozenset(right for place, right in spec.volume_rights if place == guest),
            Path(path).is_file(),
        )
        for n, (path, guest, read_only) in enumerate(spec.volumes)
    )


def needed(slot: Sequence[Record]) -> str:
    """Return the options that an older init does not know, for messages; "" if there are none."""
    return ", ".join(dict.fromkeys(OPTIONS[key] for key, _ in slot if key in OPTIONS))


def is_read_only(slot: Sequence[Record]) -> bool:
    """Return whether the guest's disk is read only."""
    return any(key == "read-only" for key, _ in slot)


def has_ipv6(slot: Sequence[Record]) -> bool:
    """Return whether the guest gets an IPv6 address."""
    return any(key == "ipv6" for key, _ in slot)


def hosts(slot: Sequence[Record]) -> tuple[bytes, ...]:
    """Return the lines of --add-host."""
    return tuple(value for key, value in slot if key == "host")


def in_order(slot: Sequence[Record]) -> list[Record]:
    """Sort mounts so that a place comes after its parents.

    Raises:
        BadInput: Two mounts have the same place.
    """
    mounts = [record for record in slot if record[0] in _MOUNTS]
    places = [place_of(record) for record in mounts]
    for place in places:
        if places.count(place) > 1:
            raise BadInput(f"--tmpfs and --volume: both at {printable(place)}", "choose another place in the guest")
    others = [record for record in slot if record[0] not in _MOUNTS]
    return others + sorted(mounts, key=lambda record: place_of(record).count(b"/"))


def place_of(record: Record) -> bytes:
    """Return the mount point of a mount or tmpfs record."""
    parts = record[1].split(b"\t")
    return parts[0] if record[0] == "tmpfs" else parts[1]
