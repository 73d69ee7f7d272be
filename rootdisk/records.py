"""Record files: `key=value` records, each ended by a NUL byte; docs/layout-1.md."""

from __future__ import annotations

from collections.abc import Iterable

from rootdisk.errors import BadInput

Record = tuple[str, bytes]


def pack(records: Iterable[Record]) -> bytes:
    """The file; BadInput where a value holds a NUL byte."""
    return b"".join(_record(key, value) for key, value in records)


def _record(key: str, value: bytes) -> bytes:
    if b"\0" in value:
        raise BadInput(f"{key} {value.partition(b'=')[0]!r:.60} holds a NUL byte", "no program could receive it")
    return key.encode() + b"=" + value + b"\0"


def unpack(data: bytes) -> list[Record]:
    """What `pack` was given; ValueError if `data` was not made by it, or is cut off."""
    if data and not data.endswith(b"\0"):
        raise ValueError("is cut off")
    if not all(b"=" in record for record in data.split(b"\0")[:-1]):
        raise ValueError("is damaged")
    pairs = (record.partition(b"=") for record in data.split(b"\0")[:-1])
    return [(key.decode(), value) for key, _, value in pairs]
