"""Packages on a disk: dpkg, dpkg's `status.d` of distroless images, apk, rpm, Python's dist-info, npm's package.json, Go's modules.

A database is foreign text: it is bounded, and what is malformed is an error that names the file. Each package has the layer
that brought it: of the file that lists its content, else of its database.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from email.parser import Parser
from typing import NamedTuple, Protocol
from urllib.parse import quote

from imagetool.ext4.reader import Node, Reader
from imagetool.sbom import golang, rpm
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.ext4.format import FT_REG_FILE
from rootdisk.text import printable

DATABASE_MAX_BYTES = 256 << 20
FILE_MAX_BYTES = 4 << 20
PACKAGES_MAX = 200_000
_READ_BY_NAME = frozenset((b"METADATA", b"PKG-INFO", b"package.json"))  # of files that are read wherever they are
_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*):[ \t]?(.*)")


class Disk(Protocol):
    """A disk that is looked through."""

    @property
    def reader(self) -> Reader:
        """The disk's files."""

    def layer(self, node: Node) -> str:
        """Return the diff ID of the layer that an inode comes from, or "" if unknown."""


class Package(NamedTuple):
    """A package that is installed."""

    kind: str  # deb, apk, rpm, pypi, npm, golang
    name: str
    version: str
    architecture: str = ""
    license: str = ""
    source: str = ""  # the source package, if it has another name
    layer: str = ""  # diff ID

    def purl(self, distribution: str) -> str:
        """Return the package URL; `distribution` is os-release's ID."""
        name = quote(self.name, safe="/@" if self.kind in ("npm", "golang") else "").replace("@", "%40")
        place = f"{quote(distribution, safe='')}/" if self.kind in ("deb", "apk", "rpm") and distribution else ""
        version, qualifiers = self.version, [("arch", self.architecture)] if self.architecture else []
        if self.kind == "rpm" and ":" in version:
            epoch, _, version = version.partition(":")
            qualifiers.append(("epoch", epoch))
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in qualifiers)
        return f"pkg:{self.kind}/{place}{name}@{quote(version, safe='')}{f'?{text}' if text else ''}"


class Found(NamedTuple):
    """The packages of a disk, and which distribution it is."""

    packages: tuple[Package, ...]
    distribution: str = ""  # os-release: ID
    release: str = ""  # VERSION_ID
    unread: tuple[str, ...] = ()  # paths of databases that are not read: their packages are missing


def find(disk: Disk) -> Found:
    """List every package on `disk`, sorted.

    Raises:
        BadInput: A database is malformed or too large.
    """
    release = _os_release(disk)
    found: set[Package] = set()
    for package in _all(disk):
        found.add(package)
        if len(found) > PACKAGES_MAX:
            raise BadInput(f"more than {PACKAGES_MAX} packages")
    return Found(tuple(sorted(found)), release.get("ID", ""), release.get("VERSION_ID", ""), tuple(_unread(disk)))


def _all(disk: Disk) -> Iterator[Package]:
    yield from _dpkg(disk)
    yield from _apk(disk)
    yield from _rpm(disk)

    def wants(name: bytes, number: int, kind: int) -> bool:
        """Tell whether a file may say something: by its name, or as a program that Go may have made."""
        if kind != FT_REG_FILE:
            return False
        if name in _READ_BY_NAME or name.endswith(b".egg-info"):
            return True
        mode, size = disk.reader.glance(number)
        return bool(mode & 0o111) and size >= golang.PROGRAM_MIN_BYTES

    for path, node in disk.reader.walk(wants=wants):
        if node.type != stat.S_IFREG:
            continue
        if path.endswith((b".dist-info/METADATA", b".egg-info/PKG-INFO", b".egg-info")):
            yield from _python(disk, path, node)
        elif path.endswith(b"/package.json") and b"/node_modules/" in path:
            yield from _npm(disk, path, node)
        elif node.mode & 0o111 and node.size >= golang.PROGRAM_MIN_BYTES:
            yield from _go(disk, path, node)


def _dpkg(disk: Disk) -> Iterator[Package]:
    listings = _entries(disk, b"/var/lib/dpkg/info")
    for path in (b"/var/lib/dpkg/status", *_names(disk, b"/var/lib/dpkg/status.d")):
        node = _node(disk, path)
        if node is None or path.endswith(b".md5sums"):
            continue
        for fields in stanzas(_text(disk, node, path, DATABASE_MAX_BYTES), path):
            status = fields.get("Status", "install ok installed" if b"status.d" in path else "")
            if not status.endswith(" installed") or "Package" not in fields or "Version" not in fields:
                continue
            name, architecture = fields["Package"], fields.get("Architecture", "")
            number = listings.get(f"{name}.list".encode()) or listings.get(f"{name}:{architecture}.list".encode())
            owner = disk.reader.node(number) if number else None
            source = fields.get("Source", "").partition(" ")[0]
            yield Package("deb", name, fields["Version"], architecture, "", source, disk.layer(owner or node))


def _apk(disk: Disk) -> Iterator[Package]:
    for path in (b"/lib/apk/db/installed", b"/usr/lib/apk/db/installed"):
        node = _node(disk, path)
        if node is None:
            continue
        for paragraph in _text(disk, node, path, DATABASE_MAX_BYTES).split("\n\n"):
            fields: dict[str, str] = {}
            folder, first = "", ""
            for line in paragraph.splitlines():
                key, colon, value = line.partition(":")
                if not colon or len(key) != 1:
                    raise BadInput(f"{printable(path)}: {printable(line, 80)!r} is not a field")
                if key == "F":
                    folder = value
                elif key == "R" and not first:
                    first = f"/{folder}/{value}"
                fields.setdefault(key, value)
            if "P" in fields and "V" in fields:
                owner = _node(disk, first.encode()) if first else None
                yield Package(
                    "apk", fields["P"], fields["V"], fields.get("A", ""), fields.get("L", ""), fields.get("o", ""),
                    disk.layer(owner or node),
                )  # fmt: skip
        return  # one is a link to the other


def _rpm(disk: Disk) -> Iterator[Package]:
    seen: set[int] = set()
    for folder in rpm.FOLDERS:
        path = folder + b"/" + rpm.DATABASE
        node = _node(disk, path)
        if node is None or node.number in seen:  # one is a link to the other
            continue
        seen.add(node.number)
        journal = _node(disk, path + b"-wal")
        for file in filter(None, (node, journal)):
            _check_size(file, path, DATABASE_MAX_BYTES)
        database = disk.reader.content(node)
        log = disk.reader.content(journal) if journal is not None else iter(())
        for header in rpm.headers(database, log, path):
            owner = _node(disk, header.file) if header.file else None
            yield Package(
                "rpm", header.name, header.version, header.architecture, header.license, header.source,
                disk.layer(owner or node),
            )  # fmt: skip


def _unread(disk: Disk) -> Iterator[str]:
    """Yield the paths of rpm's older databases, if there is none that is read."""
    if any(_node(disk, folder + b"/" + rpm.DATABASE) for folder in rpm.FOLDERS):
        return
    numbers: set[int] = set()
    for folder in rpm.FOLDERS:
        for name in rpm.OTHERS:
            node = _node(disk, folder + b"/" + name)
            if node is not None and node.size and node.number not in numbers:
                numbers.add(node.number)
                yield (folder + b"/" + name).decode()


def _go(disk: Disk, path: bytes, node: Node) -> Iterator[Package]:
    def read(offset: int, length: int) -> bytes:
        """Read bytes of the program."""
        return disk.reader.read_at(node, offset, length) if offset < node.size else b""

    try:
        for module in golang.modules(read):
            yield Package("golang", module.path, module.version, layer=disk.layer(node))
    except ValueError as err:
        raise BadInput(f"{printable(path)}: {err}") from err


def _python(disk: Disk, path: bytes, node: Node) -> Iterator[Package]:
    fields = Parser().parsestr(_text(disk, node, path, FILE_MAX_BYTES), headersonly=True)
    name, version = str(fields.get("Name", "")), str(fields.get("Version", ""))
    if name and version:
        text = str(fields.get("License-Expression", ""))
        yield Package("pypi", re.sub(r"[-_.]+", "-", name).lower(), version, "", text, "", disk.layer(node))


def _npm(disk: Disk, path: bytes, node: Node) -> Iterator[Package]:
    below = path.rpartition(b"/node_modules/")[2].split(b"/")
    if len(below) != (3 if below[0].startswith(b"@") else 2):
        return  # not a package's own
    try:
        value = json.loads(_text(disk, node, path, FILE_MAX_BYTES))
    except (ValueError, RecursionError):
        return  # packages carry broken ones as test data
    if isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("version"), str):
        text = value.get("license")
        yield Package(
            "npm", value["name"], value["version"], "", text if isinstance(text, str) else "", "", disk.layer(node)
        )


def stanzas(text: str, path: bytes) -> Iterator[dict[str, str]]:
    """Parse dpkg's database `path`: the fields of each package, by their first lines; deb822(5)."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            if not line.strip() or line[0] in " \t#":
                continue  # a field's further lines say nothing that is asked for
            found = _FIELD.fullmatch(line)
            if found is None:
                raise BadInput(f"{printable(path)}: {printable(line, 80)!r} is not a field")
            fields[found[1]] = found[2].strip()
        if fields:
            yield fields


def _os_release(disk: Disk) -> dict[str, str]:
    for path in (b"/etc/os-release", b"/usr/lib/os-release"):
        node = _node(disk, path)
        if node is not None:
            lines = _text(disk, node, path, FILE_MAX_BYTES).splitlines()
            pairs = (line.partition("=") for line in lines)
            return {name: value.strip("\"'") for name, equals, value in pairs if equals}
    return {}


def _node(disk: Disk, path: bytes) -> Node | None:
    """Find a regular file, through links that stay on the disk; None if there is none."""
    try:
        node = disk.reader.lookup(path, follow=True)
    except RootdiskError:
        return None
    return node if node.type == stat.S_IFREG else None


def _names(disk: Disk, path: bytes) -> list[bytes]:
    return [path + b"/" + name for name in sorted(_entries(disk, path))]


def _entries(disk: Disk, path: bytes) -> dict[bytes, int]:
    """Return the inode numbers in a directory by name; nothing if there is none."""
    try:
        folder = disk.reader.lookup(path, follow=True)
    except RootdiskError:
        return {}
    return {name: number for name, number, _ in disk.reader.entries(folder)} if folder.type == stat.S_IFDIR else {}


def _text(disk: Disk, node: Node, path: bytes, max_bytes: int) -> str:
    _check_size(node, path, max_bytes)
    return b"".join(disk.reader.content(node)).decode("utf-8", "replace").replace("\0", "\ufffd")


def _check_size(node: Node, path: bytes, max_bytes: int) -> None:
    if node.size > max_bytes:
        raise BadInput(f"{printable(path)}: {node.size} bytes are more than the {max_bytes} allowed")
