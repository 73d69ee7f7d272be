"""Templates in the store, without a machine: keys, ages, failures, digests, and the RAM that nobody can change."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootdisk.artifact.format import TEMPLATE_VERSION, TEMPLATE_WITH_VERITY, ArtifactConfig
from rootdisk.durable import write_json
from rootdisk.errors import Busy
from rootdisk.oci.documents import Platform
from runner.machine.model import Forward, Machine, Share, Vm
from runner.sandbox.upkeep.prune import prune
from runner.store.store import Store
from runner.template import memory, restore, saved
from runner.template.restore import end, reason
from tests.support.artifacts import example_config
from tests.support.commands import ROOT, run

KEY = "ab" * 32
SIZE = 8 << 20
BARE = Machine(
    Platform.parse("amd64"), "tcg", 384, 3, Path("/k"), Path("/i"), "console=ttyS0", "", Path("/d"), "qcow2", 1 << 30, Path("/b"),
    False, "none",
)  # fmt: skip
SHARED = BARE._replace(network="user", shares=(Share("volume0", Path("/s"), "/v", read_only=False),))
PAGES = {4096: b"a" * 4096, 5 << 20: b"b" * 4096}


def make(store: Store, key: str = KEY, age_s: float = 0.0) -> saved.Template:
    """Write a template as a maker does."""
    folder = store.root / "templates" / key
    folder.mkdir()
    with (folder / "ram").open("wb") as file:
        file.truncate(SIZE)
        for offset, page in PAGES.items():
            file.seek(offset)
            file.write(page)
    (folder / "state").write_bytes(b"state")
    with (folder / "ram").open("rb") as file:
        digest = saved.pages_digest(file.fileno())
    value = {"version": saved.VERSION, "created": time.time() - age_s, "nonce": os.urandom(16).hex(), "what": "8 MiB"}
    write_json(
        folder / "template.json", {**value, "ram": [SIZE, digest], "state": [5, hashlib.sha256(b"state").hexdigest()]}
    )
    template = saved.read(folder)
    assert template is not None
    return template


def config(template: int = TEMPLATE_VERSION) -> ArtifactConfig:
    return example_config()._replace(template=template)


@pytest.mark.skipif(not os.path.exists("/usr/bin/qemu-system-x86_64"), reason="needs QEMU")
def test_the_key_is_of_all_that_decides() -> None:
    """Whatever a saved machine has in it: not the disk, its size, the slot, ports and whether it is kept."""
    one = saved.key(BARE, config())
    assert one is not None
    assert re.fullmatch("[0-9a-f]{64}", one)
    same: tuple[dict[str, Any], ...] = (
        {"disk": Path("/other"), "disk_size": 2 << 30, "disk_format": "raw", "base": None},
        {"base": Path("/socket"), "is_base_served": True},
        {"slot_digest": "a" * 64, "durable": True, "ipv6": True, "forwards": (Forward("tcp", "127.0.0.1", 1, 2),)},
    )
    for change in same:
        assert saved.key(BARE._replace(**change), config()) == one, change
    others: tuple[dict[str, Any], ...] = (
        {"memory_mib": 385},
        {"cpus": 2},
        {"network": "user"},
        {"kernel": Path("/other")},
        {"initramfs": Path("/other")},
        {"accelerator": "kvm"},
        {"kind": "q35"},
        {"cmdline": "console=ttyS0 a=1"},
        {"lanes": 8},
        {"verity": Path("/t")},
    )
    keys = {saved.key(BARE._replace(**change), config(TEMPLATE_WITH_VERITY)) for change in others}
    assert len(keys | {one}) == len(others) + 1
    assert None not in keys


@pytest.mark.skipif(not os.path.exists("/usr/bin/qemu-system-x86_64"), reason="needs QEMU")
def test_what_has_no_template() -> None:
    """Volumes, an init or a kernel that cannot be saved, a machine without a kernel, and a very large one."""
    assert saved.key(SHARED, config()) is None
    assert saved.key(BARE, config(0)) is None
    assert saved.key(BARE, config(TEMPLATE_WITH_VERITY + 1)) is None
    assert (
        saved.key(BARE._replace(verity=Path("/t")), config(TEMPLATE_VERSION)) is None
    )  # it would mount the disk unchecked
    assert saved.key(BARE._replace(verity=Path("/t")), config(TEMPLATE_WITH_VERITY)) is not None
    assert saved.key(BARE._replace(kernel=None), config()) is None
    assert saved.key(BARE._replace(memory_mib=saved.MEMORY_MAX_MIB + 1), config()) is None


def test_ages(store: Store) -> None:
    """After a day it is made again, and still used; after two it is not used."""
    assert saved.find(store, KEY) is None
    assert saved.is_wanted(store, KEY)
    for age_s, is_used, is_wanted in (
        (0, True, False),
        (saved.AGE_S + 9, True, True),
        (saved.END_S + 9, False, True),
        (-9e6, False, True),
    ):
        template = make(store, age_s=age_s)
        assert (saved.find(store, KEY) == template) is is_used, age_s
        assert saved.is_wanted(store, KEY) is is_wanted, age_s
        saved.remove(template.folder)


def test_failures_end_the_tries(store: Store) -> None:
    """One failure is made good; after the second, boots are cold for a day."""
    make(store)
    saved.note_failure(store, KEY, "bad \x1b[31m luck")
    assert saved.find(store, KEY) is not None
    saved.note_failure(store, KEY, "bad luck")
    assert saved.find(store, KEY) is None
    assert not saved.is_wanted(store, KEY)
    assert list(saved.failures(store)) == ["bad luck"]
    path = store.root / "templates" / f"{KEY}.failed"
    os.utime(path, (0, time.time() - saved.AGAIN_S - 9))
    assert saved.find(store, KEY) is not None
    assert list(saved.failures(store)) == []
    os.utime(path, (0, time.time() + saved.AGAIN_S))  # the clock was set back
    assert list(saved.failures(store)) == []
    saved.remove_left(store)
    assert not path.exists()
    saved.note_failure(store, KEY, "bad luck")
    saved.forget_failures(store, KEY)  # a sandbox has started from it
    saved.note_failure(store, KEY, "bad luck")
    assert saved.find(store, KEY) is not None


def test_another_version_is_left_alone(store: Store) -> None:
    template = make(store)
    path = template.folder / "template.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    assert saved.find(store, KEY) is None
    saved.remove_left(store)
    assert path.exists()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "created": "x"}'])
def test_damaged_descriptions(store: Store, raw: bytes) -> None:
    template = make(store)
    (template.folder / "template.json").write_bytes(raw)
    assert saved.find(store, KEY) is None
    assert list(saved.all_of(store)) == []
    saved.remove_left(store)
    assert not template.folder.exists()


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"x")


def test_damage_is_found(store: Store) -> None:
    """By `verify`, which removes it; a boot makes it again."""
    changes: list[Callable[[Path], None]] = [
        lambda folder: _flip(folder / "ram", 5 << 20),
        lambda folder: _flip(folder / "ram", 7 << 20),
        lambda folder: _flip(folder / "state", 2),
        lambda folder: os.truncate(folder / "ram", SIZE - 4096),
        lambda folder: os.truncate(folder / "state", 4),
        lambda folder: (folder / "ram").unlink(),
    ]
    for change in changes:
        template = make(store)
        assert saved.damage(template) == ""
        change(template.folder)
        assert saved.damage(template)
        done = run("runner", "verify", ROOTDISK_STORE=str(store.root))
        assert done.returncode == 0
        assert "removed, the next boot makes it again" in done.stderr
        assert not template.folder.exists()


def test_prune_and_doctor(store: Store) -> None:
    template = make(store)
    (store.root / "templates" / f".new-{'cd' * 32}").mkdir()
    (store.root / "templates" / ".old-0123456789abcdef").mkdir()
    done = run("runner", "doctor", ROOTDISK_STORE=str(store.root), ROOTDISK_TEMPLATES="1")
    assert re.search(r"ok +templates +\d+ MB: 8 MiB, 0 h old", done.stdout), done.stdout
    with saved.making(store, "cd" * 32):  # its maker lives
        assert prune(store, 60, None, dry_run=False) == []
        assert template.folder.exists()
        assert (store.root / "templates" / f".new-{'cd' * 32}").exists()
    ((path, size),) = prune(store, 0, None, dry_run=True)
    assert (path, size > 0) == (template.folder, True)
    assert template.folder.exists()
    assert [path for path, _ in prune(store, 0, None, dry_run=False)] == [template.folder]
    assert list((store.root / "templates").iterdir()) == []
    assert "none yet" in run("runner", "doctor", ROOTDISK_STORE=str(store.root), ROOTDISK_TEMPLATES="1").stdout
    assert "off: ROOTDISK_TEMPLATES=0" in run("runner", "doctor", ROOTDISK_STORE=str(store.root)).stdout


def test_one_maker_at_a_time(store: Store) -> None:
    with saved.making(store, KEY), pytest.raises(Busy), saved.making(store, KEY):
        pass


def attack(fd: int) -> list[str]:
    """Try to change the file of a descriptor in every way; return the ways that work."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # as QEMU opens it

    def shared() -> None:
        """Map it as a machine to save does."""
        with mmap.mmap(again, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as view:
            view[4096:4100] = b"evil"

    ways: dict[str, Callable[[], object]] = {
        "write": lambda: os.pwrite(again, b"evil", 4096),
        "map": shared,
        "shorten": lambda: os.ftruncate(again, 4096),
        "grow": lambda: os.ftruncate(again, SIZE * 2),
        "allocate": lambda: os.posix_fallocate(again, 0, SIZE * 2),
    }
    worked = []
    for name, way in ways.items():
        try:
            way()
            worked.append(name)
        except OSError:
            pass
    os.close(again)
    return worked


def as_another(fd: int) -> list[str]:
    """Run `attack` in a process of QEMU's user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(61200, 61200, 61200)
                os.setresuid(61200, 61200, 61200)
            os.write(writer, " ".join(attack(fd)).encode() or b"none")
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        words = pipe.read().split()
    os.waitpid(pid, 0)
    assert words, "the attack itself has failed"
    return words


def test_nobody_changes_the_ram(store: Store) -> None:
    """Neither QEMU's user, nor another user, nor root: the memory is sealed. And the attack is one that can succeed."""
    fd = memory.load(store, make(store))
    assert as_another(fd) == ["none"]
    assert attack(fd) == []
    assert {offset: os.pread(fd, 4096, offset) for offset in PAGES} == PAGES
    os.close(fd)
    fd = os.memfd_create("open to all")
    os.ftruncate(fd, SIZE)
    assert {"write", "map", "shorten", "grow"} <= set(as_another(fd))
    os.close(fd)


def test_running_sandboxes_share_it(store: Store) -> None:
    """Another process gets the very same memory, as long as one holds it; then it is read again."""
    template = make(store)
    fd = memory.load(store, template)
    script = f"""
import os, sys
from pathlib import Path
from runner.store.store import Store
from runner.template import memory, restore, saved
from runner.template.restore import end, reason
template = saved.read(Path({str(template.folder)!r}))
print(os.fstat(memory.load(Store.open(), template)).st_ino)
"""

    def other() -> int:
        """Return the inode of the memory that another process gets."""
        env = {**os.environ, "ROOTDISK_STORE": str(store.root), "PYTHONPATH": str(ROOT)}
        return int(
            subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=env, text=True).stdout
        )

    inode = os.fstat(fd).st_ino
    assert other() == inode
    assert [user.name for user in (template.folder / "users").iterdir() if user.name == str(os.getpid())]
    os.close(fd)
    assert other() != inode
    assert not (template.folder / "users" / str(os.getpid())).exists()


def test_what_is_not_this_ram_is_not_taken(store: Store) -> None:
    """A process with the same number, another template's RAM, and one that is not sealed."""
    template = make(store)
    users = template.folder / "users"
    users.mkdir()
    unsealed = os.memfd_create(memory._name(template))
    os.ftruncate(unsealed, SIZE)
    for entry in (str(unsealed), "0", "99999", "x", "", "-1", "1" * 100):
        (users / str(os.getpid())).write_text(entry)
        fd = memory.load(store, template)
        assert attack(fd) == []
        os.close(fd)
    os.close(unsealed)


def test_a_damaged_file_is_not_loaded(store: Store) -> None:
    template = make(store)
    os.truncate(template.folder / "ram", 4096)
    with pytest.raises(ValueError, match="another size"):
        memory.load(store, template)
    with pytest.raises(ValueError, match="does not match its digest"):
        template._replace(state=(6, "")).read_state()


def _vm(*argv: str) -> Vm:
    return Vm(subprocess.Popen(argv, stdout=subprocess.PIPE), *socket.socketpair())


def test_what_the_host_lacks_is_not_the_fault_of_a_template() -> None:
    """QEMU may be killed because memory is short: that is said, in place of what its closed sockets say."""
    err = BrokenPipeError(errno.EPIPE, "Broken pipe")
    vm = _vm("sh", "-c", "kill -9 $$")
    how = end(vm, err)
    assert restore.KILLED in how
    assert reason(err, vm, how) == "QEMU: SIGKILL (was the host out of memory?)"
    vm = _vm("sh", "-c", "echo it will not; exit 1")
    how = end(vm, err)
    assert restore.KILLED not in how
    assert reason(err, vm, how) == f"{err}: it will not"
    vm = _vm("sleep", "100")
    assert end(vm, TimeoutError("late")) == ""  # this process has killed it
    assert vm.process.returncode == -signal.SIGKILL
    assert [restore.is_lack(one) for one in (OSError(errno.EMFILE, ""), OSError(errno.ENOMEM, ""), err, ValueError())] == [
        True, True, False, False,
    ]  # fmt: skip
