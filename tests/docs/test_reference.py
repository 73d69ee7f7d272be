"""The generated pages are up to date, and the test vectors are what the specifications say, read by a second implementation."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess

from tests.support.reference import PLACE, pages

VECTORS = json.loads((PLACE / "vectors.json").read_text("utf-8"))


def test_they_are_up_to_date() -> None:
    for name, text in pages().items():
        assert (PLACE / name).read_text("utf-8") == text, f"{name}: run python -m tests.support.reference"


def test_chunk_index() -> None:
    """docs/artifact-1.md, "The chunk index"."""
    vector = VECTORS["chunk_index"]
    raw = bytes.fromhex(vector["index"])
    assert hashlib.sha256(raw).hexdigest() == vector["index_sha256"]
    assert raw[:8] == b"RDCHUNK1"
    size, count, zero = struct.unpack("<QII", raw[8:24])
    assert (size, zero, len(raw)) == (vector["disk_size"], 0, 24 + 64 * count)
    identity = hashlib.sha256(b"rootdisk disk 1\0" + raw[8:16])
    for number, chunk in enumerate(vector["chunks"]):
        entry = raw[24 + 64 * number :][:64]
        offset, blob_offset, length, blob_length, flags, reserved = struct.unpack("<QQIIII", entry[:32])
        assert (offset, blob_offset, length, blob_length) == tuple(
            chunk[key] for key in ("offset", "blob_offset", "length", "blob_length")
        )
        assert (flags, reserved, entry[32:].hex()) == (int(chunk["zero"]), 0, chunk["sha256"])
        identity.update(struct.pack("<QQB", offset, length, flags) + entry[32:])
    assert f"sha256:{identity.hexdigest()}" == vector["disk_digest"]


def test_frames() -> None:
    """RFC 8878, by the zstd program; the seek table by its own description."""
    frames, index = VECTORS["frames"], VECTORS["chunk_index"]

    def unpacked(data: str) -> bytes:
        return subprocess.run(["zstd", "-dc"], input=bytes.fromhex(data), capture_output=True, check=True).stdout

    disk = bytes(4096) + b"\x01" * 4096 + bytes(4096)
    assert unpacked(frames["zstd_file"]) == disk
    assert unpacked(frames["zero_131073"]) == bytes(131073)
    for chunk in index["chunks"]:
        frame = frames["zstd_file"][2 * chunk["blob_offset"] :][: 2 * chunk["blob_length"]]
        raw = unpacked(frame)
        assert raw == disk[chunk["offset"] :][: chunk["length"]]
        assert chunk["zero"] or hashlib.sha256(raw).hexdigest() == chunk["sha256"]
    table = bytes.fromhex(frames["seek_table"])
    magic, length = struct.unpack("<II", table[:8])
    assert (magic, length) == (0x184D2A5E, len(table) - 8)
    assert struct.unpack("<IBI", table[-9:]) == (3, 0, 0x8F92EAB1)
    assert list(struct.iter_unpack("<II", table[8:-9])) == [(c["blob_length"], c["length"]) for c in index["chunks"]]


def test_slot() -> None:
    """docs/layout-1.md, "The slot"."""
    vector = VECTORS["slot"]
    head = bytes.fromhex(vector["head"])
    assert head[:8] == b"RDSLOT1\0"
    assert struct.unpack("<II", head[8:16]) == (len(head) - 16, 0)
    records = [record.partition(b"=") for record in head[16:].split(b"\0")[:-1]]
    assert [[name.decode(), value.hex()] for name, _, value in records] == vector["records"]
    assert hashlib.sha256(head).hexdigest() == vector["rootdisk.slot"]


def test_derivation_key() -> None:
    vector = VECTORS["derivation_key"]
    text = json.dumps(vector["inputs"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert text == vector["canonical_json"]
    assert hashlib.sha256(text.encode()).hexdigest() == vector["key"]
    assert vector["tag"] == f"key-{vector['key'][:32]}"
