"""The RAM of a template in memory, which all sandboxes from it share until they write.

It is a memfd, sealed: nobody can write to it, whatever rights they have (fcntl(2), F_SEAL_WRITE), but anybody may map it
privately. So a QEMU that its guest has taken over cannot change what others start from. QEMU before 9.0 opens the file of its
RAM for writing even if it only reads it, so a file of the store would need to be writable for it.

No process is there just to hold this memory. Each keeper holds the descriptor while its sandbox runs, and a new one finds it
in /proc/PID/fd of a running one. If none runs, it is read from the store again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rootdisk.durable import atomic_write, copy_data, open_file, read_file
from rootdisk.system.locks import held
from runner.store.store import Store
from runner.template.saved import Template

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_FD_MAX_BYTES = 32
_WAIT_S = 5.0  # for another process that loads it


@contextlib.contextmanager
def loading(
    store: Store,
    template: Template,
    wait_s: float = _WAIT_S,
    *,
    is_checked: bool = False,
    when_filled: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Yield a descriptor of the RAM, for QEMU to start with. At the end of the block it has its content, and is sealed.

    So the content is read while QEMU starts. QEMU may run a guest only after the block: until then it has nothing of a guest,
    and the RAM is not sealed. Later others find it here, as long as this process keeps it open; after an error it is closed.
    `wait_s` is how long another process that loads it is waited for. If it `is_checked`, what is read is compared with its
    digest. `when_filled` is called before that: QEMU can read the state of its devices meanwhile.

    Raises:
        OSError, ValueError: It cannot be read, or is damaged.
        Busy: Another process does not get on with loading it.
    """
    with held(store.root / "locks" / f"template-{template.folder.name}.load", timeout_s=wait_s):
        fd = _shared(template)
        is_new = fd is None
        if fd is None:
            fd = os.memfd_create(_name(template), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if is_new:
                os.ftruncate(fd, template.ram[0])
            yield fd
            if is_new:
                _fill(fd, template)
            when_filled()
            if is_new and is_checked:
                template.check_ram(fd)
        except BaseException:
            os.close(fd)
            raise
        _offer(template, fd)


def load(store: Store, template: Template) -> int:
    """Return a descriptor of the sealed RAM; as `loading`."""
    with loading(store, template) as fd:
        return fd


def _fill(fd: int, template: Template) -> None:
    """Read the RAM from the store, and seal it."""
    source = open_file(template.folder / "ram")
    try:
        if os.fstat(source).st_size != template.ram[0]:
            raise ValueError("ram: has another size")
        copy_data(source, fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    finally:
        os.close(source)


def _name(template: Template) -> str:
    return f"rootdisk-{template.folder.name[:32]}-{template.nonce}"


def _shared(template: Template) -> int | None:
    """Return the RAM that the keeper of a running sandbox holds, or None. Entries of processes that have ended are removed."""
    with contextlib.suppress(FileNotFoundError):
        for user in (template.folder / "users").iterdir():
            try:
                return _of_process(template, user.name, read_file(user, _FD_MAX_BYTES).decode())
            except (OSError, ValueError):
                with contextlib.suppress(OSError):
                    user.unlink()
    return None


def _of_process(template: Template, pid: str, number: str) -> int:
    """Return a descriptor of the RAM that a process holds. A process of another sandbox may have the same number by now.

    Raises:
        OSError, ValueError: It does not hold this RAM.
    """
    place = f"/proc/{int(pid)}/fd/{int(number)}"
    if os.readlink(place) != f"/memfd:{_name(template)} (deleted)":
        raise ValueError("another file")
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) != SEALS or os.fstat(fd).st_size != template.ram[0]:
            raise ValueError("it is not sealed")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _offer(template: Template, fd: int) -> None:
    users = template.folder / "users"
    with contextlib.suppress(OSError):  # a full disk: others read it from the store
        users.mkdir(mode=0o700, exist_ok=True)
        atomic_write(Path(users, str(os.getpid())), str(fd).encode(), 0o600, durable=False)


def withdraw(template: Template) -> None:
    """Let nobody find the RAM here any more."""
    with contextlib.suppress(OSError):
        os.unlink(template.folder / "users" / str(os.getpid()))
