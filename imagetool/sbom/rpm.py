"""rpm's package database: the table `Packages` of rpmdb.sqlite, a header in each row; rpm's docs/manual/format_header.md.

SQLite reads a copy in a temporary directory. The database is foreign: the schema is not trusted, only a plain table is read,
steps and lengths are bounded, and a header is checked before its data is looked at.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.text import printable

FOLDERS = (b"/usr/lib/sysimage/rpm", b"/var/lib/rpm", b"/usr/share/rpm")
DATABASE = b"rpmdb.sqlite"
OTHERS = (b"Packages", b"Packages.db")  # Berkeley DB, ndb
HEADER_MAX_BYTES = 64 << 20
ENTRIES_MAX_COUNT = 0xFFFF  # rpm's own limit
HEADERS_MAX_COUNT = 200_000
_STEPS_MAX = 200_000_000 // 10_000
_TEXT_MAX = 4096
_ENTRY = struct.Struct(">IIiI")
_INT32, _STRING, _STRING_ARRAY, _I18NSTRING = 4, 6, 8, 9
_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH, _SOURCE = 1000, 1001, 1002, 1003, 1014, 1022, 1044
_DIRECTORY_NUMBERS, _BASE_NAMES, _DIRECTORIES = 1116, 1117, 1118


class Header(NamedTuple):
    """An installed package; "" where the header says nothing."""

    name: str
    version: str  # [epoch:]version-release
    architecture: str
    license: str
    source: str  # file name of the source package
    file: bytes  # path of its first file; empty if it has none


def headers(database: Iterable[bytes], journal: Iterable[bytes], what: bytes) -> Iterator[Header]:
    """Yield every package of the database; `journal` is what its write-ahead log holds, and `what` names it in errors.

    Raises:
        BadInput: It is not such a database, or too large.
    """
    import sqlite3  # takes a while to load

    with tempfile.TemporaryDirectory(prefix="rootdisk-rpm-") as folder:
        for name, pieces in (("rpmdb", database), ("rpmdb-wal", journal)):
            with Path(folder, name).open("wb") as file:
                file.writelines(pieces)
        try:
            with contextlib.closing(sqlite3.connect(Path(folder, "rpmdb"), isolation_level=None)) as connection:
                yield from _rows(connection, what)
        except (sqlite3.Error, OverflowError, MemoryError, UnicodeDecodeError) as err:
            raise BadInput(f"{printable(what)}: not a readable database: {printable(str(err), 120)}") from err


def _rows(connection: object, what: bytes) -> Iterator[Header]:
    import sqlite3

    assert isinstance(connection, sqlite3.Connection)
    steps = 0

    def is_over() -> int:
        """Count ten thousand steps; return whether there were too many."""
        nonlocal steps
        steps += 1
        return steps > _STEPS_MAX

    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, HEADER_MAX_BYTES)
    connection.set_progress_handler(is_over, 10_000)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "query_only=ON"):
        connection.execute(f"PRAGMA {pragma}")
    found = connection.execute("SELECT type, substr(sql, 1, 200) FROM sqlite_schema WHERE name = 'Packages'").fetchall()
    if len(found) != 1 or found[0][0] != "table" or "VIRTUAL" in str(found[0][1]).upper():
        raise BadInput(f"{printable(what)}: it has no table Packages")
    rows = connection.execute("SELECT blob FROM Packages ORDER BY hnum")
    for number, (blob,) in enumerate(rows):
        if number == HEADERS_MAX_COUNT:
            raise BadInput(f"{printable(what)}: more than {HEADERS_MAX_COUNT} packages")
        try:
            if not isinstance(blob, bytes):
                raise ValueError("not a blob")
            yield parse(blob)
        except ValueError as err:
            raise BadInput(f"{printable(what)}: header {number}: {err}") from err


def parse(blob: bytes) -> Header:
    """Parse the header of a package.

    Raises:
        ValueError: It is malformed; the message says how.
    """
    if len(blob) < 8:
        raise ValueError("too short")
    count, length = struct.unpack_from(">II", blob)
    if count > ENTRIES_MAX_COUNT or 8 + count * _ENTRY.size + length != len(blob):
        raise ValueError("its length is wrong")
    data = memoryview(blob)[8 + count * _ENTRY.size :]
    entries = {tag: (kind, at, items) for tag, kind, at, items in _ENTRY.iter_unpack(blob[8 : 8 + count * _ENTRY.size])}

    def texts(tag: int, most: int) -> list[bytes]:
        """Return up to `most` strings of a tag; none if it is missing."""
        kind, at, items = entries.get(tag, (_STRING, 0, 0))
        if kind not in (_STRING, _STRING_ARRAY, _I18NSTRING):
            raise ValueError(f"tag {tag} is not a text")
        strings = []
        for _ in range(min(items, most)):
            end = bytes(data[at : at + _TEXT_MAX]).find(b"\0") if 0 <= at < length else -1
            if end < 0:
                raise ValueError(f"tag {tag} has no end")
            strings.append(bytes(data[at : at + end]))
            at += end + 1
        return strings

    def number(tag: int) -> int | None:
        """Return the first number of a tag; None if it is missing."""
        kind, at, items = entries.get(tag, (_INT32, 0, 0))
        if not items:
            return None
        if kind != _INT32 or not 0 <= at <= length - 4:
            raise ValueError(f"tag {tag} is not a number")
        return int(struct.unpack_from(">I", data, at)[0])

    name, version, release, architecture, licence, source = (
        b"".join(texts(tag, 1)).decode("utf-8", "replace")
        for tag in (_NAME, _VERSION, _RELEASE, _ARCH, _LICENSE, _SOURCE)
    )
    if not name or not version:
        raise ValueError("it has no name or version")
    epoch = number(_EPOCH)
    whole = f"{version}-{release}" if release else version
    file = b""
    if base := texts(_BASE_NAMES, 1):
        place = number(_DIRECTORY_NUMBERS) or 0
        folders = texts(_DIRECTORIES, place + 1) if place < ENTRIES_MAX_COUNT else []
        file = (folders[place] if place < len(folders) else b"") + base[0]
    return Header(name, f"{epoch}:{whole}" if epoch else whole, architecture, licence, source, file)
