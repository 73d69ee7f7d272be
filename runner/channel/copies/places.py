"""Choose the place of a copy by docker's rules for SOURCE and TARGET (docs/runner.md), from the user's paths alone."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.limits import LINKS_MAX
from rootdisk.text import printable

CONTENTS = b"."  # in place of a source's name: what is in the directory, not the directory


def guest_path(path: str) -> bytes:
    """A path in a sandbox, as docker has it: begins at the root, `..` goes no higher, a last `/` or `/.` stays.

    BadInput if it is empty, as of a variable that is not set: it would be everything in the sandbox.
    """
    if not path:
        raise BadInput("the path in the sandbox is empty", "write NAME:/ for all of it")
    return _plain(b"/" + os.fsencode(path).lstrip(b"/"))


def host_path(path: str) -> bytes:
    """A path on this machine, as docker has it: `..` takes back the part before it, also if that is a link; `/` and `/.` stay."""
    plain = _plain(os.fsencode(path))
    if plain == b"." and path.rstrip("/").endswith(".."):
        return os.path.abspath(plain)  # it was named as a directory, not as what is in it
    return plain


def _plain(path: bytes) -> bytes:
    clean = posixpath.normpath(path)
    if clean in (b"/", b"."):
        return clean
    return clean + (b"/." if path.rstrip(b"/").endswith(b"/.") else b"/" if path.endswith(b"/") else b"")


def guest_name(path: bytes) -> bytes:
    """Return the name for a copy of `path` in a sandbox, from `guest_path`; CONTENTS if it ends in `/.`, and for the root."""
    return posixpath.basename(path.rstrip(b"/")) or CONTENTS


def host_name(path: bytes) -> bytes:
    """Return the name for a copy of `path` on this machine; CONTENTS if it ends in `/.`, and for the root."""
    last = os.path.basename(path.rstrip(b"/"))
    return (os.path.basename(os.path.realpath(path)) if last == b".." else last) or CONTENTS


class Place(NamedTuple):
    """The place of the root of a copy on this machine."""

    directory: int  # a descriptor: nothing outside of it is written
    name: bytes  # the root's name in it; empty if it is the root
    shown: bytes  # the path for messages
    exists: bool  # as a file: only a file may come in its place
    is_folder: bool  # `directory` is what the user named, not what it lies in
    wants_directory: bool  # the user wrote a / at the end


def find_place(target: bytes, name: bytes) -> Place:
    """Return where a copy called `name` goes if the user names `target`; the caller closes its descriptor. BadInput."""
    try:
        info = os.stat(target)
    except FileNotFoundError:
        return _new_place(target)
    except OSError as err:
        raise BadInput(f"cp: {printable(target)}: {err.strerror}") from err
    if stat.S_ISDIR(info.st_mode):
        folder = _open(target)
        if name == CONTENTS:
            return Place(folder, b"", target, exists=False, is_folder=True, wants_directory=True)
        return Place(folder, name, os.path.join(target, name), exists=False, is_folder=True, wants_directory=False)
    if not stat.S_ISREG(info.st_mode):
        raise BadInput(f"cp: {printable(target)} is {kind_of(info.st_mode)}: name a file or a directory")
    path = os.path.realpath(target)  # a link stays one: the file that it names is replaced, as docker does
    folder = _open(os.path.dirname(path))
    return Place(folder, os.path.basename(path), target, exists=True, is_folder=False, wants_directory=False)


def _new_place(target: bytes) -> Place:
    path = _last_link(re.sub(rb"(?<=.)(/\.?)+$", b"", target))
    folder, _, name = path.rpartition(b"/")
    if name in (b"", b".", b".."):
        raise BadInput(f"cp: {printable(target)}: {os.strerror(errno.ENOENT)}")
    wants_directory = target.endswith((b"/", b"/."))
    return Place(_open(folder + b"/" if b"/" in path else b"."), name, target, False, False, wants_directory)


def _last_link(path: bytes) -> bytes:
    """Return what a dangling `path` names in the end, after following links."""
    for _ in range(LINKS_MAX):
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return path
    raise BadInput(f"cp: {printable(path)}: {os.strerror(errno.ELOOP)}")


def _open(path: bytes) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise BadInput(f"cp: {printable(path)}: {err.strerror}") from err


def kind_of(mode: int) -> str:
    """Return the file type in st_mode, with its article."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFREG: "a file",
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
