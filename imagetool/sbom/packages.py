"""Packages on a disk: dpkg, dpkg's `status.d` of distroless images, apk, Python's dist-info, npm's package.json.

A database is foreign text: it is bounded, and what is malformed is an error that names the file. Each package has the layer
that brought it: of the file that lists its content, else of its database.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from email.parser import Parser
from typing import NamedTuple
from urllib.parse import quote

from imagetool.ext4.reader import Node
from imagetool.look.inspection import InspectedDisk, content
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.text import printable

DATABASE_MAX_BYTES = 256 << 20
FILE_MAX_BYTES = 4 << 20
PACKAGES_MAX = 200_000
_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*):[ \t]?(.*)")


class Package(NamedTuple):
    """A package that is installed."""

    kind: str  # deb, apk, pypi, npm
    name: str
    version: str
    architecture: str = ""
    license: str = ""
    source: str = ""  # the source package, if it has another name
    layer: str = ""  # diff ID

    def purl(self, distribution: str) -> str:
        """Return the package URL; `distribution` is os-release's ID."""
        name = quote(self.name, safe="/@" if self.kind == "npm" else "").replace("@", "%40")
        place = f"{quote(distribution, safe='')}/" if self.kind in ("deb", "apk") and distribution else ""
        arch = f"?arch={quote(self.architecture, safe='')}" if self.architecture else ""
        return f"pkg:{self.kind}/{place}{name}@{quote(self.version, safe='')}{arch}"


class Found(NamedTuple):
    """The packages of a disk, and which distribution it is."""

    packages: tuple[Package, ...]
    distribution: str = ""  # os-release: ID
    release: str = ""  # VERSION_ID


def find(disk: InspectedDisk) -> Found:
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
    return Found(tuple(sorted(found)), release.get("ID", ""), release.get("VERSION_ID", ""))


def _all(disk: InspectedDisk) -> Iterator[Package]:
    yield from _dpkg(disk)
    yield from _apk(disk)
    for path, node in disk.reader.walk():
        if node.type != stat.S_IFREG:
            continue
        if path.endswith((b".dist-info/METADATA", b".egg-info/PKG-INFO", b".egg-info")):
            yield from _python(disk, path, node)
        elif path.endswith(b"/package.json") and b"/node_modules/" in path:
            yield from _npm(disk, path, node)


def _dpkg(disk: InspectedDisk) -> Iterator[Package]:
    for path in (b"/var/lib/dpkg/status", *_names(disk, b"/var/lib/dpkg/status.d")):
        node = _node(disk, path)
        if node is None or path.endswith(b".md5sums"):
            continue
        for fields in stanzas(_text(disk, node, path, DATABASE_MAX_BYTES), path):
            status = fields.get("Status", "install ok installed" if b"status.d" in path else "")
            if not status.endswith(" installed") or "Package" not in fields or "Version" not in fields:
                continue
            name, architecture = fields["Package"], fields.get("Architecture", "")
            owner = None
            for listing in (f"{name}.list", f"{name}:{architecture}.list"):
                owner = owner or _node(disk, b"/var/lib/dpkg/info/" + listing.encode())
            source = fields.get("Source", "").partition(" ")[0]
            yield Package("deb", name, fields["Version"], architecture, "", source, disk.layer(owner or node))


def _apk(disk: InspectedDisk) -> Iterator[Package]:
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


def _python(disk: InspectedDisk, path: bytes, node: Node) -> Iterator[Package]:
    fields = Parser().parsestr(_text(disk, node, path, FILE_MAX_BYTES), headersonly=True)
    name, version = str(fields.get("Name", "")), str(fields.get("Version", ""))
    if name and version:
        text = str(fields.get("License-Expression", ""))
        yield Package("pypi", re.sub(r"[-_.]+", "-", name).lower(), version, "", text, "", disk.layer(node))


def _npm(disk: InspectedDisk, path: bytes, node: Node) -> Iterator[Package]:
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


def _os_release(disk: InspectedDisk) -> dict[str, str]:
    for path in (b"/etc/os-release", b"/usr/lib/os-release"):
        node = _node(disk, path)
        if node is not None:
            lines = _text(disk, node, path, FILE_MAX_BYTES).splitlines()
            pairs = (line.partition("=") for line in lines)
            return {name: value.strip("\"'") for name, equals, value in pairs if equals}
    return {}


def _node(disk: InspectedDisk, path: bytes) -> Node | None:
    """Find a regular file, through links that stay on the disk; None if there is none."""
    try:
        node = disk.reader.lookup(path, follow=True)
    except RootdiskError:
        return None
    return node if node.type == stat.S_IFREG else None


def _names(disk: InspectedDisk, path: bytes) -> list[bytes]:
    try:
        folder = disk.reader.lookup(path, follow=True)
    except RootdiskError:
        return []
    if folder.type != stat.S_IFDIR:
        return []
    return [path + b"/" + name for name, _, _ in sorted(disk.reader.entries(folder)) if name not in (b".", b"..")]


def _text(disk: InspectedDisk, node: Node, path: bytes, max_bytes: int) -> str:
    if node.size > max_bytes:
        raise BadInput(f"{printable(path)}: {node.size} bytes are more than the {max_bytes} allowed")
    return b"".join(content(disk.reader, node)).decode("utf-8", "replace").replace("\0", "\ufffd")
