"""Users and groups of an image: read from its own /etc/passwd and /etc/group, and added to them where asked.

Formats: passwd(5), group(5), shadow(5), gshadow(5). Lines that are not understood are kept as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from runner.errors import BadInput

FIRST_ID = 10001  # clear of distributions' system and user ranges, below the 16-bit limit
LAST_ID = 60000


class Accounts(NamedTuple):
    """The account files' bytes; None where the image has no such file."""

    passwd: bytes | None = None
    group: bytes | None = None
    shadow: bytes | None = None
    gshadow: bytes | None = None

    def user(self, name: str) -> tuple[int, int] | None:
        """uid and primary gid of user `name`, or None."""
        for fields in _records(self.passwd, 7):
            if fields[0] == name.encode() and fields[2].isdigit() and fields[3].isdigit():
                return int(fields[2]), int(fields[3])
        return None

    def group_id(self, name: str) -> int | None:
        for fields in _records(self.group, 4):
            if fields[0] == name.encode() and fields[2].isdigit():
                return int(fields[2])
        return None

    def with_user(
        self, name: str, uid: int | None, gid: int | None, home: str, shell: str
    ) -> tuple[Accounts, tuple[int, int]]:
        """These accounts with user `name` and a group for it, and its uid and gid.

        Free ids are the lowest from 10001 on that no user and no group has. BadInput where `uid` belongs to another.
        """
        if not name or any(c in name for c in ":\n\0/") or name.startswith("-"):
            raise BadInput(f"owners: {name!r} cannot be a user name")
        uids = {int(f[2]): f[0].decode(errors="replace") for f in _records(self.passwd, 7) if f[2].isdigit()}
        gids = {int(f[2]) for f in _records(self.group, 4) if f[2].isdigit()}
        if uid is not None and uid in uids:
            raise BadInput(f"owners: uid {uid} for new user {name} belongs to {uids[uid]}", "choose another uid")
        if uid is None:
            uid = next((n for n in range(FIRST_ID, LAST_ID) if n not in uids and n not in gids), None)
            if uid is None:
                raise BadInput(f"owners: no free uid for {name}", "give one: {user = …, uid = …}")
        accounts = self
        if gid is None:
            gid = self.group_id(name)
        if gid is None:
            gid = (
                uid if uid not in gids else next(n for n in range(FIRST_ID, 1 << 31) if n not in gids and n not in uids)
            )
        if gid not in gids:
            accounts = accounts._replace(
                group=_append(self.group if self.group is not None else b"root:x:0:\n", f"{name}:x:{gid}:"),
                gshadow=None if self.gshadow is None else _append(self.gshadow, f"{name}:!::"),
            )
        root = b"root:x:0:0:root:/root:/bin/sh\n"
        accounts = accounts._replace(
            passwd=_append(self.passwd if self.passwd is not None else root, f"{name}:x:{uid}:{gid}::{home}:{shell}"),
            shadow=None if self.shadow is None else _append(self.shadow, f"{name}:!:1:0:99999:7:::"),
        )
        return accounts, (uid, gid)


def _records(data: bytes | None, count: int) -> list[list[bytes]]:
    return [fields for line in (data or b"").split(b"\n") if len(fields := line.split(b":")) == count]


def _append(data: bytes, line: str) -> bytes:
    return data + (b"" if not data or data.endswith(b"\n") else b"\n") + line.encode() + b"\n"
