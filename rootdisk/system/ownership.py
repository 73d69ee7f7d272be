"""Check that only the user and root can change a directory.

Each directory on the path, also through links, must belong to the user or to root and must not be writable by others. A
sticky directory such as /tmp is fine if the next directory belongs to the user or to root. Missing directories are
created with mode 0700 under any umask. After this check no other user can change what a path below the directory means,
so later code need not open it component by component.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rootdisk.errors import RootdiskError
from rootdisk.limits import LINKS_MAX
from rootdisk.text import printable

_MODE = 0o700


def make_private(path: Path) -> None:
    """Create the directory `path` if it is missing, and check that no other user can change it.

    Raises:
        RootdiskError: Another user could change it; the hint says what to type.
        OSError: It cannot be created or read.
    """
    for place, info, is_last in _way(path):
        if stat.S_ISLNK(info.st_mode):
            if not _is_trusted(info.st_uid):
                raise _refused(path, f"the link {_shown(place)} belongs to {user_name(info.st_uid)}")
        elif is_last:
            _check_own(path, place, info)
        elif not _is_trusted(info.st_uid):
            raise _refused(path, f"{_shown(place)} belongs to {user_name(info.st_uid)}", _run_as(info.st_uid))
        elif not info.st_mode & stat.S_ISVTX and (who := _writers(place, info)):
            raise _refused(path, f"{who} may write to {_shown(place)}", f"chmod {who[0]}-w {_shown(place)}")


def check_cache(path: Path) -> None:
    """Check that the cache directory `path` belongs to the user or root and is not world-writable.

    Its content is trusted and published. A wrong owner is common with `sudo -E`.

    Raises:
        RootdiskError: The directory is not safe.
    """
    info = path.stat()
    if not _is_trusted(info.st_uid):
        why = f"it belongs to {user_name(info.st_uid)}, and you are {user_name(os.geteuid())}"
    elif info.st_mode & stat.S_IWOTH:
        why = "others may write to it"
    else:
        return
    raise RootdiskError(
        f"cache {_shown(str(path))} is not safe from other users: {why}",
        "set ROOTDISK_CACHE to a directory of your own",
    )


def make_private_below(path: Path) -> None:
    """Do what `make_private` does for a directory whose parent has been checked. This is faster, unless it is a link."""
    with contextlib.suppress(FileExistsError):
        make_directory(path)
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        make_private(path)
    else:
        _check_own(path, str(path), info)


def _check_own(path: Path, place: str, info: os.stat_result) -> None:
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(20, os.strerror(20), place)
    uid = os.geteuid()
    if info.st_uid != uid:
        what = f"it belongs to {user_name(info.st_uid)}, and you are {user_name(uid)}"
        raise _refused(path, what, _run_as(info.st_uid))
    if who := _writers(place, info):
        raise _refused(path, f"{who} may write to it", f"chmod {who[0]}-w {_shown(place)}")


def _way(path: Path) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Yield each directory and link from / to `path`, with its status and whether it is the last. Create missing ones."""
    left = list(reversed(path.absolute().parts[1:]))
    place, links = "/", 0
    yield place, os.lstat(place), not left
    while left:
        name = left.pop()
        if name == "..":
            place = os.path.dirname(place)
            continue
        entry = os.path.join(place, name)
        try:
            info = os.lstat(entry)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                make_directory(Path(entry))
            info = os.lstat(entry)
        if not stat.S_ISLNK(info.st_mode):
            place = entry
            yield place, info, not left
            continue
        yield entry, info, False
        links += 1
        if links > LINKS_MAX:
            raise OSError(40, os.strerror(40), entry)
        target = os.readlink(entry)
        if target.startswith("/"):
            place = "/"
        left += reversed([part for part in target.split("/") if part not in ("", ".")])


def make_directory(path: Path) -> None:
    """Create a directory with mode 0700 under any umask."""
    path.mkdir(mode=_MODE)
    if stat.S_IMODE(os.lstat(path).st_mode) != _MODE:
        path.chmod(_MODE)  # changed by the umask or by the set-group-ID bit of the parent


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or uid == _unmapped()


def _unmapped() -> int | None:
    """Return the user ID that stands for users outside our user namespace, or None if we are in no such namespace.

    In a rootless container / has this owner.
    """
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
        return None
    return int(Path("/proc/sys/kernel/overflowuid").read_text())


def _writers(place: str, info: os.stat_result) -> str:
    """Return who else may write to a directory: "group", "others", or "" for nobody."""
    if info.st_mode & stat.S_IWOTH:
        return "others"
    if info.st_mode & stat.S_IWGRP and not _is_private(place, info):
        return "group"
    return ""


def _is_private(place: str, info: os.stat_result) -> bool:
    """Return whether only the owner is in the group, as on systems with user private groups, and no ACL adds others."""
    with contextlib.suppress(OSError):
        os.getxattr(place, "system.posix_acl_access")
        return False
    # Read the files: the modules pwd and grp may ask a directory service over the network.
    users = [line.split(":") for line in _lines("/etc/passwd")]
    owners = {fields[0] for fields in users if len(fields) > 3 and fields[2] == str(info.st_uid)}
    with_group = {fields[0] for fields in users if len(fields) > 3 and fields[3] == str(info.st_gid)}
    groups = [line.split(":") for line in _lines("/etc/group")]
    members = {
        name for fields in groups if len(fields) > 3 and fields[2] == str(info.st_gid) for name in fields[3].split(",")
    }
    return bool(owners & with_group) and (with_group | members) - {""} <= owners


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def user_name(uid: int) -> str:
    """Return the name of a user, or "user" and the number if it has none in /etc/passwd."""
    names = [line.split(":")[0] for line in _lines("/etc/passwd") if line.split(":")[2:3] == [str(uid)]]
    return printable(names[0], 40) if names else f"user {uid}"


def _run_as(uid: int) -> str:
    return "" if os.geteuid() else f"run it as {user_name(uid)}, without sudo"


def _shown(place: str) -> str:
    return printable(place)


def _refused(path: Path, what: str, remedy: str = "") -> RootdiskError:
    others = "set ROOTDISK_STORE to a directory of your own"
    return RootdiskError(
        f"store {printable(path)} is not safe from other users: {what}", f"{remedy}, or {others}" if remedy else others
    )
