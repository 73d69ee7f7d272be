"""Record files: `key=value` records, each ended by a NUL byte; docs/layout-1.md."""

from __future__ import annotations

from collections.abc import Iterable

from rootdisk.errors import BadInput
from rootdisk.text import printable

Record = tuple[str, bytes]


def pack(records: Iterable[Record]) -> bytes:
    """Return the record file that holds `records`.

    Raises:
        BadInput: A value contains a NUL byte.
    """
    return b"".join(_record(key, value) for key, value in records)


def _record(key: str, value: bytes) -> bytes:
    record = key.encode("utf-8", "surrogateescape") + b"=" + value
    if b"\0" in record:
        # Of a variable the name alone: values may be secret.
        what = f"{key} {printable(value.partition(b'=')[0], 60)}" if key == "env" else printable(key, 60)
        raise BadInput(f"{what} holds a NUL byte", "no program could receive it")
    return record + b"\0"


def unpack(data: bytes) -> list[Record]:
    """Return the records in `data`, which `pack` has written.

    Raises:
        ValueError: `data` is truncated or damaged.
    """
    if data and not data.endswith(b"\0"):
        raise ValueError("is cut off")
    if not all(b"=" in record for record in data.split(b"\0")[:-1]):
        raise ValueError("is damaged")
    pairs = (record.partition(b"=") for record in data.split(b"\0")[:-1])
    return [(key.decode(), value) for key, _, value in pairs]
