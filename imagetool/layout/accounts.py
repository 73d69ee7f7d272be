"""Users and groups of an image: read from its own /etc/passwd and /etc/group, and added to them where asked.

Formats: passwd(5), group(5), shadow(5), gshadow(5). Lines that are not understood are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rootdisk.errors import BadInput
from rootdisk.parsing.ids import ID_MAX, RANGE, id_or_none
from rootdisk.text import printable

FILES = ("passwd", "group", "shadow", "gshadow")
FIRST_ID = 10001  # clear of distributions' system and user ranges, below the 16-bit limit
LAST_ID = 60000


class Accounts:
    """The account files of an image, each read once. `files` maps the names of existing ones to their bytes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._added: dict[str, list[str]] = {}
        self._users: dict[str, tuple[int, int]] = {}  # uid and primary gid; if a name is there twice, the first counts
        self._groups: dict[str, int] = {}
        self._uids: dict[int, str] = {}
        self._gids: set[int] = set()
        self._bad: set[str] = set()  # users and groups without a valid number
        for fields in _records(files.get("passwd"), 7):
            uid, gid = id_or_none(fields[2]), id_or_none(fields[3])
            if uid is not None:
                self._uids[uid] = fields[0]
            if uid is not None and gid is not None:
                self._users.setdefault(fields[0], (uid, gid))
            else:
                self._bad.add(f"user {fields[0]}")
        for fields in _records(files.get("group"), 4):
            gid = id_or_none(fields[2])
            if gid is not None:
                self._groups.setdefault(fields[0], gid)
                self._gids.add(gid)
            else:
                self._bad.add(f"group {fields[0]}")

    def user(self, name: str) -> tuple[int, int] | None:
        """Return uid and primary gid of the user `name`, or None if there is none.

        Raises:
            BadInput: Its line has a number that is out of range.
        """
        ids = self._users.get(name)
        if ids is None and f"user {name}" in self._bad:
            raise BadInput(f"owners: user {printable(name)} has no valid number in the image's /etc/passwd", RANGE)
        return ids

    def group_id(self, name: str) -> int | None:
        """Return the gid of the group `name`, or None if there is none.

        Raises:
            BadInput: Its line has a number that is out of range.
        """
        gid = self._groups.get(name)
        if gid is None and f"group {name}" in self._bad:
            raise BadInput(f"owners: group {printable(name)} has no valid number in the image's /etc/group", RANGE)
        return gid

    def add_user(self, name: str, uid: int | None, gid: int | None, home: str, shell: str) -> tuple[int, int]:
        """Add user `name` and a group for it; return uid and gid.

        Without `uid`, the lowest id from 10001 on that no user and no group has. BadInput if `uid` is taken.
        """
        if not name or any(c in name for c in ":/ ") or name.startswith("-") or not name.isprintable():
            raise BadInput(f"owners: {printable(name)!r} cannot be a user name")
        if ":" in home or not home.isprintable():  # it would be a line of /etc/passwd that means something else
            raise BadInput(
                f"owners: {printable(home)!r} cannot be the home of a new user", "give a uid in place of a name"
            )
        if uid is not None and uid in self._uids:
            holder = printable(self._uids[uid])
            raise BadInput(f"owners: uid {uid} for new user {name} belongs to {holder}", "choose another uid")
        if uid is None:
            uid = next((n for n in range(FIRST_ID, LAST_ID) if n not in self._uids and n not in self._gids), None)
            if uid is None:
                raise BadInput(f"owners: no free uid for {name}", "give one: {user = …, uid = …}")
        if gid is None:
            gid = self.group_id(name)
        if gid is None:
            free = (n for n in range(FIRST_ID, ID_MAX) if n not in self._gids and n not in self._uids)
            gid = uid if uid not in self._gids else next(free)
        if gid not in self._gids:
            self._add("group", f"{name}:x:{gid}:")
            if "gshadow" in self._files:
                self._add("gshadow", f"{name}:!::")
            self._gids.add(gid)
            self._groups.setdefault(name, gid)
        self._add("passwd", f"{name}:x:{uid}:{gid}::{home}:{shell}")
        if "shadow" in self._files:
            self._add("shadow", f"{name}:!:1:0:99999:7:::")
        self._uids[uid] = name
        self._users.setdefault(name, (uid, gid))
        return uid, gid

    def changed(self) -> dict[str, bytes]:
        """Return the new bytes of files that were added or got lines, by name."""
        defaults = {"passwd": b"root:x:0:0:root:/root:/bin/sh\n", "group": b"root:x:0:\n"}
        new_files = {}
        for name in FILES:
            if name in self._added:
                data = self._files.get(name, defaults.get(name, b""))
                lines = "".join(f"{line}\n" for line in self._added[name]).encode()
                new_files[name] = data + (b"" if not data or data.endswith(b"\n") else b"\n") + lines
        return new_files

    def _add(self, name: str, line: str) -> None:
        self._added.setdefault(name, []).append(line)


def _records(data: bytes | None, count: int) -> Iterator[list[str]]:
    for line in (data or b"").split(b"\n"):
        fields = line.decode("utf-8", "surrogateescape").split(":")
        if len(fields) == count:
            yield fields
