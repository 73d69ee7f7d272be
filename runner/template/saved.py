"""Templates in the store, by a key of everything that decides whether a machine can continue from one.

    ROOT/templates/KEY/ram            the RAM of the machine, with holes
    ROOT/templates/KEY/state          the state of its devices
    ROOT/templates/KEY/template.json  when it was made, of what, sizes and digests; its time is that of the last use
    ROOT/templates/KEY/users/PID      a keeper whose sandbox started from it, and the descriptor of the RAM: memory.py
    ROOT/templates/.new-KEY/          one that is being made; its maker holds ROOT/locks/template-KEY
    ROOT/templates/KEY.failed         why it could not be made, or why nothing could start from it

A directory gets its name by rename when all of it is on the disk. A template never contains anything of an image or of a
sandbox: it is saved by a machine of its own, which has neither a disk nor a slot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rootdisk.artifact.format import TEMPLATE_VERSION, TEMPLATE_WITH_VERITY, ArtifactConfig
from rootdisk.durable import data_runs, open_file, read_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.parsing.digests import HEX_SHA256
from rootdisk.system.locks import held
from rootdisk.system.versions import has_other_version, read_versioned, write_versioned
from rootdisk.text import describe_error, one_line, printable
from runner.machine import qemu
from runner.machine.model import Machine
from runner.store.store import Store

VERSION = 1  # of the files of a template; part of the key
OFF = "ROOTDISK_TEMPLATES"  # this variable is 0: every boot is cold
AGE_S = 86400.0  # then it is made again, beside a boot that still uses it
END_S = 2 * AGE_S  # then it is not used
AGAIN_S = 86400.0  # after its failures a template is not tried for so long
_SKEW_S = 60  # of the clock of a file server
FAILURES_MAX = 2
PAGE = 4096
MEMORY_MAX_MIB = 16 << 10  # a larger machine has too much in its page tables
_KEY = re.compile(rf"{HEX_SHA256}\Z")
_NEW = re.compile(rf"\.new-{HEX_SHA256}\Z")
_FAILED = re.compile(rf"({HEX_SHA256})\.failed\Z")
_READ_BYTES = 1 << 20
STATE_MAX_BYTES = 64 << 20
MISMATCH = "its content does not match its digest"


class Template(NamedTuple):
    """A saved machine in the store."""

    folder: Path
    created: float  # Unix time
    nonce: str  # 32 hex digits, of this very saving
    what: str  # for people
    ram: tuple[int, str]  # bytes, sha256 of `pages_digest`
    state: tuple[int, str]  # bytes, sha256

    @property
    def age_s(self) -> float:
        """Seconds since it was made; a clock that was set back makes it old."""
        age = time.time() - self.created
        return age if age >= 0 else END_S

    @property
    def used(self) -> float:
        """Unix time of the last use."""
        return (self.folder / "template.json").stat().st_mtime

    @property
    def disk_bytes(self) -> int:
        """The size on the disk, in bytes."""
        return sum(path.lstat().st_blocks * 512 for path in self.folder.iterdir())

    def read_state(self) -> bytes:
        """Return the state of the devices. OSError or ValueError if it cannot be read or is damaged."""
        data = read_file(self.folder / "state", STATE_MAX_BYTES)
        if (len(data), hashlib.sha256(data).hexdigest()) != self.state:
            raise ValueError(f"state: {MISMATCH}")
        return data

    def check_ram(self, fd: int) -> None:
        """Compare the RAM open at `fd` with its digest; ValueError if it is damaged."""
        if os.fstat(fd).st_size != self.ram[0] or pages_digest(fd) != self.ram[1]:
            raise ValueError(f"ram: {MISMATCH}")

    def note_use(self) -> None:
        """Record that a sandbox starts from it."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / "template.json")


def is_off() -> bool:
    """Return whether the user has turned templates off."""
    return os.environ.get(OFF) == "0"


def blank(machine: Machine) -> Machine:
    """Return the machine to save, from which `machine` can continue: without what differs between sandboxes."""
    words = "rootdisk.template=1" if machine.verity is None else "rootdisk.template=1 rootdisk.verity=template"
    return machine._replace(
        cmdline=f"{machine.cmdline} {words}",
        slot_digest="",
        disk=Path(),
        disk_format="raw",
        disk_size=0,
        base=None,
        is_base_served=False,
        verity=None if machine.verity is None else Path(),
        verity_words="",
        durable=False,
        forwards=(),
        ipv6=False,
        cgroup=None,
    )


def key(machine: Machine, config: ArtifactConfig) -> str | None:
    """Return the key of the template for `machine`, whose `cmdline` is the artifact's alone; None if it can have none.

    The key covers kernel and initramfs, the program of QEMU, this boot of the host and QEMU's whole command line: machine,
    processor, memory and devices.
    """
    if machine.shares or machine.memory_mib > MEMORY_MAX_MIB or machine.kernel is None or machine.initramfs is None:
        return None
    if config.template not in (TEMPLATE_VERSION, TEMPLATE_WITH_VERITY):
        return None
    if machine.verity is not None and config.template != TEMPLATE_WITH_VERITY:
        return None  # its init would mount the disk unchecked
    program = qemu.program(machine.platform)
    info = os.stat(program)
    nothing = qemu.Handles(0, 0, 0, 0, 0, None, None, memory=qemu.Memory(0), lanes=(0,) * machine.lanes)
    inputs = {
        "version": VERSION,
        "qemu": [os.path.realpath(program), info.st_size, info.st_mtime_ns, info.st_ino],
        "host": Path("/proc/sys/kernel/random/boot_id").read_text("utf-8", "replace").strip(),
        "kernel": machine.kernel.name,
        "initramfs": machine.initramfs.name,
        "command": qemu.command(program, blank(machine), nothing),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def find(store: Store, template_key: str) -> Template | None:
    """Return the template of a key, if there is one that may be used."""
    template = read(store.root / "templates" / template_key)
    if template is None or template.age_s >= END_S or _has_failed(store, template_key):
        return None
    return template


def read(folder: Path) -> Template | None:
    """Return the template in `folder`; None if there is none, or if it cannot be read or has another version."""
    try:
        value = read_versioned(folder / "template.json", VERSION)
        return Template(
            folder,
            float(value["created"]),
            str(value["nonce"]),
            str(value["what"]),
            (int(value["ram"][0]), str(value["ram"][1])),
            (int(value["state"][0]), str(value["state"][1])),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def all_of(store: Store) -> Iterator[Template]:
    """Yield the templates of the store."""
    for path in sorted((store.root / "templates").iterdir()):
        template = read(path) if _KEY.match(path.name) else None
        if template is not None:
            yield template


def is_wanted(store: Store, template_key: str) -> bool:
    """Return whether to make a template with this key: there is none or an old one, and it has not failed repeatedly."""
    if _has_failed(store, template_key):
        return False
    template = read(store.root / "templates" / template_key)
    return template is None or template.age_s >= AGE_S


def note_failure(store: Store, template_key: str, why: str) -> None:
    """Record that a template could not be made, or that nothing could start from it."""
    count = _failures(store, template_key)[0] + 1
    with contextlib.suppress(OSError):
        path = store.root / "templates" / f"{template_key}.failed"
        write_versioned(path, {"count": count, "why": printable(why, 500)}, VERSION, durable=False)


def forget_failures(store: Store, template_key: str) -> None:
    """Record that a sandbox has started from the template: only failures one after the other count."""
    with contextlib.suppress(OSError):
        (store.root / "templates" / f"{template_key}.failed").unlink(missing_ok=True)


def failures(store: Store) -> Iterator[str]:
    """Yield why templates failed in the last day, for people."""
    for path in sorted((store.root / "templates").iterdir()):
        if match := _FAILED.match(path.name):
            count, why = _failures(store, match[1])
            if count:
                yield why


def _has_failed(store: Store, template_key: str) -> bool:
    return _failures(store, template_key)[0] >= FAILURES_MAX


def _failures(store: Store, template_key: str) -> tuple[int, str]:
    path = store.root / "templates" / f"{template_key}.failed"
    try:
        if not -_SKEW_S <= time.time() - path.stat().st_mtime <= AGAIN_S:  # or the clock was set back
            return 0, ""
        value: Mapping[str, Any] = read_versioned(path, VERSION)
        return int(value["count"]), str(value["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def remove(folder: Path) -> int:
    """Remove a template, or what else has its name; sandboxes that run from it go on. Return the bytes that it had on the disk."""
    import shutil  # slow to import

    hidden = folder.with_name(f".old-{os.urandom(8).hex()}")
    try:
        is_directory = stat.S_ISDIR(folder.lstat().st_mode)  # a link to one is not followed
        size = sum(path.lstat().st_blocks * 512 for path in folder.iterdir()) if is_directory else 0
        folder.rename(hidden)
    except FileNotFoundError:
        return 0
    if is_directory:
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        hidden.unlink(missing_ok=True)
    return size


def remove_left(store: Store) -> None:
    """Remove what killed makers have left, templates that cannot be read, and failures that do not count any more."""
    for path in (store.root / "templates").iterdir():
        if match := _FAILED.match(path.name):
            if not _failures(store, match[1])[0] and not has_other_version(path, VERSION):
                path.unlink(missing_ok=True)
        elif path.name.startswith(".old-") or (match := _NEW.match(path.name)):
            with contextlib.suppress(Busy, RootdiskError), making(store, path.name.partition("-")[2]):
                remove(path)
        elif _KEY.match(path.name) and read(path) is None and not has_other_version(path / "template.json", VERSION):
            remove(path)


@contextlib.contextmanager
def making(store: Store, template_key: str) -> Iterator[None]:
    """Be the only process that makes the template of this key; Busy if there is another."""
    with held(store.root / "locks" / f"template-{template_key}", timeout_s=0):
        yield


def pages_digest(fd: int) -> str:
    """Return the sha256 of the RAM open at `fd`: of every page with data, its number (le64) and its 4096 bytes, in order."""
    digest = hashlib.sha256()
    for offset, data in pages(fd):
        digest.update((offset // PAGE).to_bytes(8, "little") + data)
    return digest.hexdigest()


def pages(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and content of each page that is not all zeros."""
    zeros = bytes(PAGE)
    for start, end in data_runs(fd):
        for offset in range(start - start % PAGE, end, _READ_BYTES):
            data = os.pread(fd, min(_READ_BYTES, end - offset), offset)
            for at in range(0, len(data), PAGE):
                page = data[at : at + PAGE]
                if page != zeros[: len(page)]:
                    yield offset + at, page


def damage(template: Template) -> str:
    """Read the whole template and return what is wrong with it, or ""."""
    try:
        template.read_state()
        fd = open_file(template.folder / "ram")
        try:
            template.check_ram(fd)
        finally:
            os.close(fd)
    except ValueError as err:
        return str(err)
    except OSError as err:
        return f"it cannot be read: {describe_error(err)}"
    return ""


def remove_damaged(store: Store, tell: Callable[[str], None]) -> int:
    """Read all templates, and remove those that are damaged: they are made again. `tell` gets a line for each. Return how many are good."""
    good = 0
    for template in all_of(store):
        if why := damage(template):
            tell(f"{printable(template.folder)}: removed, the next boot makes it again: {one_line(why)}")
            remove(template.folder)
        else:
            good += 1
    return good
