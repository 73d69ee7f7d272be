"""Disks for tests: made of tars or trees by our writer, looked at by e2fsck, the kernel and our reader.

Each view gives path -> record (mode, owners, time, size, content or target or device, xattrs) and the groups of paths
that are one inode, so that views compare by `==`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagetool.ext4.plan import DiskOptions, plan, write_disk
from imagetool.ext4.reader import Node, Reader
from imagetool.tree.merge import merge
from imagetool.tree.model import BytesSource, File, Source, Special, Symlink, Tree
from tests.support.tars import END, index

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
UUID = bytes(range(16))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
needs_e2fsck = pytest.mark.skipif(shutil.which("e2fsck", path=PATH) is None, reason="e2fsck is not installed")

Record = tuple[object, ...]


@dataclass(frozen=True)
class View:
    """What somebody sees on a disk."""

    records: dict[str, Record]
    groups: list[list[str]]  # of paths that are one inode, directories too

    def differences(self, other: View) -> list[str]:
        """A line for each path that differs; none where all is equal."""
        paths = sorted(self.records.keys() | other.records.keys())
        lines = [
            f"{path}: {self.records.get(path)} != {other.records.get(path)}"
            for path in paths
            if self.records.get(path) != other.records.get(path)
        ]
        if self.groups != other.groups:
            lines += [f"hard links: {group}" for group in self.groups if group not in other.groups]
            lines += [f"hard links of the other: {group}" for group in other.groups if group not in self.groups]
        return lines


def tree_of(*layers: bytes) -> tuple[Tree, list[Source]]:
    """The tree of tars (without their ends), and what its files are read from."""
    tars = [layer + END for layer in layers]
    tree = merge((f"sha256:{n}", index(tar, f"layer {n}")) for n, tar in enumerate(tars))
    return tree, [BytesSource(tar) for tar in tars]


def write(path: Path, tree: Tree, sources: list[Source], size: int = 64 << 20) -> Path:
    """The raw disk of `tree` at `path`."""
    write_disk(plan(tree, DiskOptions(size, UUID)), sources, path)
    return path


def disk_of(path: Path, *layers: bytes, size: int = 64 << 20) -> Path:
    tree, sources = tree_of(*layers)
    return write(path, tree, sources, size)


def complaints(path: Path) -> list[str]:
    """What e2fsck says beside its passes and summary; none on a clean disk, whatever its exit status."""
    done = subprocess.run(
        ["e2fsck", "-fn", str(path)], env={"PATH": PATH, "LC_ALL": "C"}, capture_output=True, text=True
    )
    lines = [
        line
        for line in done.stdout.splitlines()
        if line and not line.startswith("Pass ") and not (str(path) in line and "non-contiguous" in line)
    ]
    return lines + ([f"exit status {done.returncode}"] if done.returncode else [])


def debugfs(path: Path, command: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", command, str(path)], env={"PATH": PATH, "LC_ALL": "C"}, capture_output=True, text=True
    )
    return done.stdout


@contextlib.contextmanager
def mounted(path: Path, options: str = "ro,noload") -> Iterator[Path]:
    """The disk mounted by this machine's kernel."""
    place = path.with_name(path.name + ".mounted")
    place.mkdir()
    subprocess.run(["mount", "-t", "ext4", "-o", f"loop,{options}", str(path), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def host_view(root: Path, *, without: frozenset[str] = frozenset()) -> View:
    """What the host's file system shows below `root`; content as sha256."""
    records: dict[str, Record] = {}
    groups: dict[int, list[str]] = defaultdict(list)
    top = os.fspath(root)
    waiting = [top]
    while waiting:
        real = waiting.pop()
        path = real[len(top) :] or "/"
        if path in without:
            continue
        info = os.lstat(real)
        content: object = None
        if stat.S_ISREG(info.st_mode):
            with open(real, "rb") as file:
                content = (info.st_size, hashlib.file_digest(file, "sha256").hexdigest())
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(os.fsencode(real))
        elif stat.S_ISDIR(info.st_mode):
            waiting += [f"{real}/{name}" for name in os.listdir(real)]
        elif not stat.S_ISFIFO(info.st_mode):
            content = (os.major(info.st_rdev), os.minor(info.st_rdev))
        xattrs = {
            os.fsencode(name): os.getxattr(real, name, follow_symlinks=False)
            for name in os.listxattr(real, follow_symlinks=False)
        }
        records[path] = _record(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, content, xattrs)
        groups[info.st_ino].append(path)
    return View(records, sorted(map(sorted, groups.values())))


def tree_view(tree: Tree, sources: list[Source]) -> View:
    """What the merged tree holds."""
    records: dict[str, Record] = {}
    groups: dict[int, list[str]] = defaultdict(list)
    for path, inode in tree.walk():
        content: object = None
        if isinstance(inode, File):
            data = bytearray(inode.size)
            pieces = ((0, inode.offset, inode.size),) if inode.segments is None else inode.segments
            for at, offset, length in pieces:
                sources[inode.layer].read_into([memoryview(data)[at : at + length]], offset)
            content = (inode.size, hashlib.sha256(data).hexdigest())
        elif isinstance(inode, Symlink):
            content = inode.target
        elif isinstance(inode, Special) and not stat.S_ISFIFO(inode.mode):
            content = (inode.major, inode.minor)
        name = os.fsdecode(path)
        records[name] = _record(inode.mode, inode.uid, inode.gid, inode.mtime_ns, content, inode.xattrs or {})
        groups[id(inode)].append(name)
    return View(records, sorted(map(sorted, groups.values())))


def reader_view(disk: Reader) -> View:
    """What our reader sees."""
    records: dict[str, Record] = {}
    groups: dict[int, list[str]] = defaultdict(list)
    for path, node in disk.walk():
        name = os.fsdecode(path)
        records[name] = _record(
            node.mode, node.uid, node.gid, node.mtime_ns, _content(disk, node), disk.xattrs(node)
        )  # fmt: skip
        groups[node.number].append(name)
        assert node.type == stat.S_IFDIR or node.links >= len(groups[node.number])
    return View(records, sorted(map(sorted, groups.values())))


def _content(disk: Reader, node: Node) -> object:
    readers: dict[int, Callable[[Node], object]] = {
        stat.S_IFREG: lambda n: (n.size, digest(disk, n)),
        stat.S_IFLNK: disk.target,
        stat.S_IFCHR: lambda n: n.device,
        stat.S_IFBLK: lambda n: n.device,
    }
    return readers[node.type](node) if node.type in readers else None


def digest(disk: Reader, node: Node) -> str:
    """sha256 of a file's bytes, holes as zeros."""
    found, at = hashlib.sha256(), 0
    for offset, data in disk.data(node):
        while at < offset:
            step = min(offset - at, 1 << 20)
            found.update(bytes(step))
            at += step
        found.update(data)
        at += len(data)
    while at < node.size:
        step = min(node.size - at, 1 << 20)
        found.update(bytes(step))
        at += step
    return found.hexdigest()


def _record(mode: int, uid: int, gid: int, mtime_ns: int, content: object, xattrs: Mapping[bytes, bytes]) -> Record:
    return mode, uid, gid, mtime_ns, content, tuple(sorted(xattrs.items()))
