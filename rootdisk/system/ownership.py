"""Whether a place is its user's alone: nobody but the user and root can put something else there.

Each directory on the way to it, through links too, must belong to the user or to root, and nobody else may write to it;
or it is sticky, as /tmp is, and the next one on the way belongs to one of them. What is missing is made on the way, 0700
whatever the umask. After that no other user can change what a path below it means, so it need not be opened piece by piece.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rootdisk.errors import RootdiskError
from rootdisk.text import printable

_LINKS_MAX = 40
_MODE = 0o700


def make_private(path: Path) -> None:
    """Make the directory `path` if it is missing, and see that it is ours alone. RootdiskError says what to type; OSError."""
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
    """Refuse the directory `path` if it belongs to somebody else but root, as with `sudo -E`, or everybody may write to it.

    What is in it is followed, believed and published.
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
    """As `make_private`, for a directory right in one that has been checked: one look, unless it is a link."""
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
    """Each directory and link from / to `path`, with its status and whether it is the last; directories made if missing."""
    left = list(reversed(path.absolute().parts[1:]))
    place, links = "/", 0
    yield place, os.lstat(place), not left
    while left:
        name = left.pop()
        if name == "..":
            place = os.path.dirname(place)
            continue
        there = os.path.join(place, name)
        try:
            info = os.lstat(there)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                make_directory(Path(there))
            info = os.lstat(there)
        if not stat.S_ISLNK(info.st_mode):
            place = there
            yield place, info, not left
            continue
        yield there, info, False
        links += 1
        if links > _LINKS_MAX:
            raise OSError(40, os.strerror(40), there)
        target = os.readlink(there)
        if target.startswith("/"):
            place = "/"
        left += reversed([part for part in target.split("/") if part not in ("", ".")])


def make_directory(path: Path) -> None:
    """Make a directory for us alone, whatever the umask."""
    path.mkdir(mode=_MODE)
    if stat.S_IMODE(os.lstat(path).st_mode) != _MODE:
        path.chmod(_MODE)  # the umask, or its parent's set-group-ID bit


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or uid == _unmapped()


def _unmapped() -> int | None:
    """The number that owners outside of our user namespace have, as / in a rootless container; None if there are none."""
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
        return None
    return int(Path("/proc/sys/kernel/overflowuid").read_text())


def _writers(place: str, info: os.stat_result) -> str:
    """Who beside the owner may write there: "group", "others", or "" for nobody."""
    if info.st_mode & stat.S_IWOTH:
        return "others"
    if info.st_mode & stat.S_IWGRP and not _is_private(place, info):
        return "group"
    return ""


def _is_private(place: str, info: os.stat_result) -> bool:
    """Whether the group is the owner's own, as many systems give each user one, and no access list adds others."""
    with contextlib.suppress(OSError):
        os.getxattr(place, "system.posix_acl_access")
        return False
    # Not by pwd and grp, which may ask the network's directories.
    users = [line.split(":") for line in _lines("/etc/passwd")]
    own = {fields[0] for fields in users if len(fields) > 3 and fields[2] == str(info.st_uid)}
    with_group = {fields[0] for fields in users if len(fields) > 3 and fields[3] == str(info.st_gid)}
    groups = [line.split(":") for line in _lines("/etc/group")]
    members = {
        name for fields in groups if len(fields) > 3 and fields[2] == str(info.st_gid) for name in fields[3].split(",")
    }
    return bool(own & with_group) and (with_group | members) - {""} <= own


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def user_name(uid: int) -> str:
    """The name of a user, or "user" and the number."""
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
