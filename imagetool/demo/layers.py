"""Snapshots of a whole system into layer tars: the first as it is, a later one as its difference (image-spec layer.md).

Whatever a build leaves behind of its time or host is left out or made even, so the same packages give the same layers.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_HOST_FILES = {"etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/.pwd.lock", "etc/ld.so.cache~"}
_BACKUPS = {"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-"}
_EMPTY = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777, "var/cache": 0o755, "var/log": 0o755}


@dataclass(frozen=True, slots=True)
class Clock:
    """Times in layers: what the installation wrote (from `start` on, seconds) gets the newest time of the packages."""

    start: float
    newest: int

    @classmethod
    def of(cls, snapshot: IO[bytes], start: float) -> Clock:
        """Read the newest time before `start` from a snapshot."""
        with tarfile.open(fileobj=snapshot) as tar:
            return cls(start, max((int(m.mtime) for m in tar if m.mtime < start), default=0))

    def time(self, mtime: float) -> int:
        """Return the time to write for a file."""
        return int(mtime) if mtime < self.start else self.newest


def base_layer(snapshot: IO[bytes], out: IO[bytes], clock: Clock) -> None:
    """Write the whole snapshot as a layer, with the mount points that it lacks."""
    with _writer(out) as layer, tarfile.open(fileobj=snapshot) as tar:
        for path, member in _members(tar, clock):
            _add(layer, path, member, tar)
        for path, mode in _EMPTY.items():
            layer.addfile(_directory(path, mode, clock.newest))


def next_layer(before: IO[bytes], after: IO[bytes], out: IO[bytes], clock: Clock) -> None:
    """Write the differences from `before` to `after` as a layer. Removed files become whiteouts."""
    with tarfile.open(fileobj=before) as tar:
        old = {path: _identity(member, tar) for path, member in _members(tar, clock)}
    gone = set(old)
    with _writer(out) as layer, tarfile.open(fileobj=after) as tar:
        for path, member in _members(tar, clock):
            gone.discard(path)
            if old.get(path) != _identity(member, tar):
                _add(layer, path, member, tar)
        for path in sorted(gone):
            parent, _, name = path.rpartition("/")
            if parent not in gone:
                whiteout = tarfile.TarInfo(f"{parent}/.wh.{name}".lstrip("/"))
                whiteout.mtime = clock.newest
                layer.addfile(whiteout)


def app_layer(files: dict[str, bytes], owner: int, out: IO[bytes], mtime: int) -> None:
    """Files by path and the directories above them, all of uid and gid `owner`."""
    made: set[str] = set()
    with _writer(out) as layer:
        for path, data in sorted(files.items()):
            parts = path.split("/")
            members = [_directory("/".join(parts[:n]), 0o755, mtime) for n in range(1, len(parts))]
            file = tarfile.TarInfo(path)
            file.size, file.mode, file.mtime = len(data), 0o644, mtime
            for member in [*members, file]:
                if member.name not in made:
                    made.add(member.name)
                    member.uid = member.gid = owner
                    layer.addfile(member, io.BytesIO(data) if member.isreg() else None)


def _writer(out: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20)


def _members(tar: tarfile.TarFile, clock: Clock) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Path and member, evened out; links keep pointing at what they did."""
    for member in tar:
        path = member.name.removeprefix(".").removeprefix("/")
        if not path or path in _HOST_FILES | _BACKUPS or (path.startswith("var/lib/dpkg/") and path.endswith("-old")):
            continue
        member.name = path
        if member.islnk():
            member.linkname = member.linkname.removeprefix("./")
        member.mtime = clock.time(member.mtime)
        member.uname = member.gname = ""
        member.pax_headers = {k: v for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr.")}
        yield path, member


def _identity(member: tarfile.TarInfo, tar: tarfile.TarFile) -> tuple[object, ...]:
    data = tar.extractfile(member) if member.isreg() else None
    content = hashlib.sha256(data.read()).digest() if data else b""
    xattrs = tuple(sorted(member.pax_headers.items()))
    return member.type, member.mode, member.uid, member.gid, member.mtime, member.linkname, xattrs, content


def _add(layer: tarfile.TarFile, path: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    layer.addfile(member, tar.extractfile(member) if member.isreg() else None)


def _directory(path: str, mode: int, mtime: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, mode, mtime
    return member
