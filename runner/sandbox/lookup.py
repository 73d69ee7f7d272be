"""Find sandboxes in the store and read their states. Changes nothing; directory.py does."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rootdisk.durable import read_file
from rootdisk.errors import BadInput
from rootdisk.system.ownership import user_name
from rootdisk.system.versions import OtherVersion
from rootdisk.text import printable
from runner.sandbox.liveness import answers, runs
from runner.sandbox.state import MAX_BYTES, State, Unreadable, parse
from runner.store.store import Store

NEW = ".new-"  # begins the name of a directory that is being made or removed


def read(folder: Path) -> State:
    """Read the state of the sandbox in `folder`.

    Raises:
        OSError: A file cannot be opened.
        OtherVersion: The state has another version.
        ValueError: The state is damaged.
    """
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise ValueError("is not a directory")
    running = runs(folder)
    try:
        return parse(read_file(folder / "state.json", MAX_BYTES), folder, running)
    except ValueError as err:
        raise type(err)(f"state.json {err}") from None


def look(folder: Path) -> State | Unreadable:
    """Read the sandbox in `folder`, or return why it cannot be read.

    Raises:
        FileNotFoundError: There is nothing with that name.
    """
    try:
        return read(folder)
    except (OSError, ValueError) as err:
        owner = os.lstat(folder).st_uid
        reason = printable(err)
        if isinstance(err, OSError):
            reason = f"{os.path.basename(err.filename or 'lock')}: {err.strerror}"
            if owner != os.geteuid():
                reason += f" (owner: {user_name(owner)})"
        running = False
        with contextlib.suppress(OSError):
            running = runs(folder)
        return Unreadable(folder, reason, running or answers(folder), isinstance(err, OtherVersion))


def all_of(store: Store) -> Iterator[State | Unreadable]:
    """Yield every sandbox, including unfinished and unreadable ones."""
    for folder in sorted(store.sandboxes.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            sandbox = look(folder)
            if isinstance(sandbox, State) or not _is_unfinished(folder):
                yield sandbox


def states(store: Store) -> Iterator[State]:
    """Yield every readable sandbox, including unfinished ones."""
    return (sandbox for sandbox in all_of(store) if isinstance(sandbox, State))


def needed(store: Store) -> set[str] | None:
    """Return the hex digests that sandboxes use, or None if one is unreadable: it may use anything."""
    digests: set[str] = set()
    for sandbox in all_of(store):
        if isinstance(sandbox, Unreadable):
            return None
        digests |= sandbox.uses
    return digests


def find(store: Store, name: str) -> State:
    """Return the sandbox `name`.

    Raises:
        BadInput: There is none, or it cannot be read.
    """
    sandbox = find_any(store, name)
    if isinstance(sandbox, Unreadable):
        raise BadInput(f"sandbox {printable(name)} cannot be read: {sandbox.reason}", sandbox.remedy)
    return sandbox


def find_any(store: Store, name: str) -> State | Unreadable:
    """Return the sandbox `name`, even if it cannot be read.

    Raises:
        BadInput: There is none; the hint names a similar one.
    """
    try:
        if not name or "/" in name or "\0" in name or (name.startswith(".") and not name.startswith(NEW)):
            raise FileNotFoundError
        return look(store.sandboxes / name)
    except (OSError, UnicodeError) as err:
        import difflib

        names = [sandbox.name for sandbox in all_of(store)]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {printable(near[0])}?" if near else "see runner ps -a"
        raise BadInput(f"no sandbox {printable(name, 80)!r}", hint) from err


def _is_unfinished(folder: Path) -> bool:
    """Return whether a directory has neither name nor state: its creation or removal is in progress, or was interrupted."""
    return folder.name.startswith(NEW) and not os.path.lexists(folder / "state.json")
