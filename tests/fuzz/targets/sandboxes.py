"""Files of the store that another process may have written or damaged: a sandbox's, its disk's, a name's."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

from rootdisk import records
from rootdisk.artifact.format import SlotExtent
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ext4 import superblock
from rootdisk.ext4.checksum import crc, disk_seed
from rootdisk.ext4.format import BLOCK, DESC_SIZE
from rootdisk.ext4.groups import GroupDescriptor, group_count
from runner.disk import grow, qcow2, slot
from runner.sandbox import lookup
from runner.sandbox.state import Spec, State, state_json
from runner.store.names import read_name
from tests.fuzz.target import Target, folder, in_file
from tests.support.disks import disk_of
from tests.support.tars import directory

EXTENT = SlotExtent("slot", 65536, 65536)


@cache
def _sandbox() -> Path:
    place = folder() / "sandboxes/box"
    place.mkdir(parents=True)
    (place / "lock").touch()
    return place


def state(data: bytes) -> None:
    """`ps`, `inspect` and `prune` read it."""
    place = _sandbox()
    (place / "state.json").write_bytes(data)
    found = lookup.look(place)
    json.dumps(found.to_json()).encode()
    if not isinstance(found, State):
        raise BadInput(found.reason)
    assert found.spec.uses <= found.uses
    json.dumps(state_json(found.raw, found.spec, pid=0)).encode()


def slot_record(data: bytes) -> None:
    place = _sandbox()
    (place / "slot.json").write_bytes(data)
    disk = place / "disk.raw"
    disk.write_bytes(bytes(3 * 65536))
    slot.rewrite(disk, EXTENT, slot.pack([("cmd", b"x")], 65536), place / "slot.json", overlay=False)


def record_file(data: bytes) -> None:
    """What `start` reads and writes again."""
    try:
        own = records.unpack(data)
    except ValueError as err:  # as its function says
        raise BadInput("no records") from err
    assert records.unpack(records.pack(own)) == own
    with suppress(BadInput):
        slot.pack([record for record in own if record[0] != "first"], 65536)


def name(data: bytes) -> None:
    path = folder() / "name"
    path.write_bytes(data)
    if read_name(path) is None:
        raise BadInput("no name")


def overlay(data: bytes) -> None:
    fd = in_file(data)
    try:
        for offset in (0, 65536, 1 << 40):
            try:
                place = qcow2.locate(fd, offset)
            except RootdiskError:
                continue
            os.pread(fd, 65536, place)
            return
    finally:
        os.close(fd)
    raise RootdiskError("no cluster")


def grown(data: bytes) -> None:
    """The file system of a disk that --disk-size makes larger: its superblock and descriptors, with right checksums."""
    path, head = _disk()
    image = bytearray(head)
    patch(image, data, 1024, len(image))
    with path.open("r+b", buffering=0) as file:
        seal(image, file.fileno())
        file.write(image)
    for size in (64 << 20, 1 << 30, 40 << 30):
        found = grow.patches(path, size)
        assert sum(map(len, found.values())) < 64 << 20
        assert all(at >= 0 and at + len(piece) <= size for at, piece in found.items())


def patch(image: bytearray, data: bytes, low: int, high: int) -> None:
    """Put what `data` says into `image`: le16 place, a byte of length, bytes."""
    at = 0
    while at + 3 < len(data):
        place, size = struct.unpack_from("<HB", data, at)
        piece = data[at + 3 : at + 3 + size]
        place = low + place % (high - low)
        piece = piece[: high - place]
        image[place : place + len(piece)] = piece
        at += 3 + size


def seal(image: bytearray, fd: int) -> None:
    """Right checksums of the superblock, and of the last group's descriptor and bitmap, if they are where they can be."""
    raw = image[1024:2048]
    image[1024:2048] = superblock.seal(raw)
    fields = superblock.unpack(raw)
    group = group_count(superblock.get(fields, "s_blocks_count_lo")) - 1
    place = BLOCK + group * DESC_SIZE
    if not group >= 0 or place + DESC_SIZE > len(image):
        return
    seed = disk_seed(fields["s_uuid"])
    last = GroupDescriptor.unpack(bytes(image[place : place + DESC_SIZE]))
    bitmap = last.block_bitmap * BLOCK
    checksum = crc(seed, os.pread(fd, BLOCK, bitmap) if len(image) <= bitmap < 1 << 40 else b"")
    image[place : place + DESC_SIZE] = last._replace(block_bitmap_checksum=checksum).pack(seed, group)


@cache
def _disk() -> tuple[Path, bytes]:
    """A small disk of ours, and its beginning: superblock and descriptors."""
    path = disk_of(folder() / "base", directory(b"d/"))
    with path.open("rb") as file:
        return path, file.read(2 * BLOCK)


def states() -> list[bytes]:
    spec = Spec("box", "alpine", "sha256:" + "a" * 64, "b" * 64, "c" * 64, None, None, 1 << 30, 512, 1, labels=(("k", "v"),), volumes=(("/a", "/b", True),), forwards=(("tcp", "127.0.0.1", 80, 8080),))  # fmt: skip
    value = state_json({"new": {"a": "sha256:" + "d" * 64}}, spec, pid=1, created=1.5, started=2, ended=None, status=None, error="")  # fmt: skip
    ended = {**value, "status": 3, "ended": 1e9, "pid": 0}
    return [json.dumps(one).encode() for one in (value, ended, {**value, "version": 9}, {})]


def overlays() -> list[bytes]:
    place = folder() / "overlay"
    place.unlink(missing_ok=True)
    qcow2.write_overlay(place, Path("/base"), 1 << 24, {65536: b"x" * 100})
    whole = place.read_bytes()
    return [whole[:600], whole[: (4 << 16) + 600]] if len(whole) > 4 << 16 else [whole]


def slot_records() -> list[bytes]:
    zero = hashlib.sha256(bytes(65536)).hexdigest()
    return [json.dumps(value).encode() for value in ([[zero]], [["a", zero]], [zero], {"a": 1}, [[1]])]


def names() -> list[bytes]:
    value = {"reference": "r", "platform": "linux/amd64", "manifest": "a" * 64, "plain_http": False, "ca_file": None}
    values: tuple[object, ...] = (value, {**value, "ca_file": "/x"}, [], {**value, "manifest": 1})
    return [json.dumps(one).encode() for one in values]


_STATE_WORDS = (*(f'"{one}"'.encode() for one in (*Spec._fields, *State._fields)), b'"\\ud800"', b"1e999", b"NaN", b"null", b"[[]]", b"9" * 30)  # fmt: skip
TARGETS = {
    "state": Target(state, states, _STATE_WORDS),
    "slot-record": Target(slot_record, slot_records, (b"[[", b"]]", b"null", b'"\\ud800"')),
    "records": Target(record_file, lambda: [b"env=A=1\0first=1\0", b"", b"=\0"], (b"\0", b"=", b"\xff")),
    "name": Target(name, names, _STATE_WORDS),
    "qcow2": Target(overlay, overlays, (b"QFI\xfb",), max_bytes=1 << 19),
    "grow": Target(grown, lambda: [b"", b"\x04\x04\x04\0\0\1\0", b"\x00\x10\x04\xff\xff\xff\xff", b"\x28\x04\4\x10\0\0\0"], few=60),
}  # fmt: skip
