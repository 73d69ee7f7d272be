"""Records of the slot that need care: what older inits do not know, and the order of what is mounted. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rootdisk.errors import BadInput
from rootdisk.records import Record
from rootdisk.text import printable

# Of a record, the option that it is from: inits of older artifacts do not know them.
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
_MOUNTS = ("mount", "mount-file", "tmpfs")


def needed(slot: Sequence[Record]) -> str:
    """Return the options that an older guest's init does not know, for people; "" for none."""
    return ", ".join(dict.fromkeys(OPTIONS[key] for key, _ in slot if key in OPTIONS))


def in_order(slot: Sequence[Record]) -> list[Record]:
    """Return the records with what is mounted sorted: a place comes after those above it.

    BadInput if two things are to be mounted at one place.
    """
    mounts = [record for record in slot if record[0] in _MOUNTS]
    places = [place_of(record) for record in mounts]
    for place in places:
        if places.count(place) > 1:
            raise BadInput(f"--tmpfs and --volume: both at {printable(place)}", "give each its own place in the guest")
    others = [record for record in slot if record[0] not in _MOUNTS]
    return others + sorted(mounts, key=lambda record: place_of(record).count(b"/"))


def place_of(record: Record) -> bytes:
    """Return where in the guest a mount or tmpfs record mounts."""
    parts = record[1].split(b"\t")
    return parts[0] if record[0] == "tmpfs" else parts[1]
