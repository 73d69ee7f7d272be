"""A machine gets the file of its disk in place of the disk's server, when the disk is complete."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rootdisk.oci.documents import Platform
from runner.disk.qcow2 import write_overlay
from runner.lazy.served import ServedDisk
from runner.machine import qemu
from runner.machine.model import Machine as Vm
from runner.sandbox.keeper.feed import HANDED_OVER, Feed
from runner.sandbox.keeper.room import Monitor
from runner.store.filling import DiskSource
from runner.store.store import Store
from tests.support.artifacts import Sample
from tests.support.faults import FaultProxy
from tests.support.nbd import server_of
from tests.support.registry import needs_registry
from tests.support.waiting import until

pytestmark = [needs_registry, pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs QEMU")]

KEPT = ("-sandbox", "-add-fd", "-blockdev", "-chardev", "-mon")
AMD64 = Platform.parse("amd64")


class Running:
    """A QEMU without a machine that has the disk, and its keeper's part."""

    def __init__(self, store: Store, source: DiskSource, folder: Path) -> None:
        write_overlay(folder / "overlay", store.disk(source.digest), source.chunk_index.disk_size, {})
        self.feed = Feed(store, ServedDisk(store, source), folder)
        self.monitor = Monitor()
        self.has_file = False
        with contextlib.ExitStack() as stack:
            self.sock, theirs = socket.socketpair()
            stack.enter_context(theirs)
            fds = [os.open(folder / "overlay", os.O_RDWR), os.open(self.feed.path, os.O_PATH)]
            for fd in fds:
                stack.callback(os.close, fd)
            size = source.chunk_index.disk_size
            machine = Vm(
                AMD64,
                "tcg",
                64,
                1,
                None,
                None,
                "",
                "",
                folder,
                "qcow2",
                size,
                folder,
                False,
                "none",
                is_base_served=True,
            )
            self.feed.orders = qemu.hand_over(machine, HANDED_OVER)
            handles = qemu.Handles(0, 0, theirs.fileno(), 0, 0, fds[0], fds[1])
            argv = qemu.command("qemu-system-x86_64", machine, handles)
            kept = [words for words in itertools.pairwise(argv) if words[0] in KEPT]
            kept = [words for words in kept if "id=console" not in words[1] and "id=channel" not in words[1]]
            head = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
            self.process = subprocess.Popen(
                [*head, *(word for words in kept for word in words)],
                pass_fds=[theirs.fileno(), *fds],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.sock.setblocking(False)
        self.said = b""

    def look(self) -> bool:
        """Do what a keeper does in each iteration. Return whether QEMU has the file."""
        if not self.has_file:
            self.feed.accept()
            list(self.feed.hear())
            self.feed.connect()
        with contextlib.suppress(BlockingIOError):
            if self.monitor.out:
                self.monitor.sent(self.sock.send(self.monitor.out))
            self.said += (data := self.sock.recv(1 << 16))
            self.monitor.feed(data)
        if not self.has_file and self.feed.hand_over(self.monitor, self.sock):
            self.has_file = True
            self.feed.close()
        return self.has_file

    def ask(self, name: str, **arguments: object) -> str:
        """Give QEMU an order, and return what it says."""
        self.said = b""
        self.monitor.out += json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"
        until(lambda: [self.look()] and (b'"return"' in self.said or b'"error"' in self.said))
        return self.said.decode()

    def read(self, offset: int, length: int) -> None:
        """Have QEMU read, through the overlay."""
        assert "return" in self.ask(
            "human-monitor-command", **{"command-line": f'qemu-io root "read {offset} {length}"'}
        )

    def close(self) -> str:
        self.process.kill()
        self.feed.close()
        self.sock.close()
        return "" if self.process.returncode is not None else self.process.communicate()[0]


@pytest.fixture
def running(
    store: Store, source: DiskSource, boot: Callable[[], object], tmp_path: Path, proxy: FaultProxy
) -> Iterator[Running]:
    """One whose disk takes many seconds to come, until `proxy` does not pause any more."""
    proxy.pause_s = 0.05
    process = Running(store, source, tmp_path)
    yield process
    process.close()


def test_qemu_reads_the_file_when_the_disk_is_complete(
    running: Running, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """And the server ends, while its machine goes on."""
    until(lambda: bool(running.look() or (running.monitor.out == b"" and b"QMP" in running.said)))
    running.read(5_000_000, 70_000)
    assert not running.has_file
    proxy.pause_s = 0
    until(running.look, 60)
    until(lambda: not server_of(store))
    nodes = running.ask("query-named-block-nodes", flat=True)
    assert '"drv": "nbd"' not in nodes
    assert "/dev/fdset/2" in nodes
    running.read(1_000_000, 70_000)
    said = running.close()
    assert said.count("70000/70000") == 2, said


def test_the_server_goes_on_if_qemu_refuses(running: Running, store: Store, proxy: FaultProxy) -> None:
    proxy.pause_s = 0
    running.feed.orders = running.feed.orders.replace(b"blockdev-reopen", b"x-unknown")
    feed = running.feed
    until(lambda: bool(running.look() or not (feed.orders or feed._has_ordered)), 60)  # QEMU has refused
    running.read(1_000_000, 70_000)
    said = {"id": HANDED_OVER, "return": {}}
    running.monitor.feed(json.dumps(said).encode() + b"\n")  # not asked for
    running.look()
    assert not running.has_file
    assert len(server_of(store)) == 1
    assert "70000/70000" in running.close()


def test_the_server_is_killed_while_qemu_gets_the_file(
    running: Running, store: Store, source: DiskSource, made: Sample, proxy: FaultProxy
) -> None:
    """Before QEMU's answer, and with a read under way."""
    until(lambda: bool(running.look() or (running.monitor.out == b"" and b"QMP" in running.said)))
    proxy.pause_s = 0
    until(lambda: bool(running.look() or running.feed._has_ordered), 60)
    for pid in server_of(store):
        os.kill(pid, signal.SIGKILL)
    until(running.look, 60)
    running.read(1_000_000, 70_000)
    assert "70000/70000" in running.close()
    until(lambda: not server_of(store))
    assert store.disk(source.digest).read_bytes() == made.disk


@pytest.mark.nightly  # five servers, and the time after them
def test_every_server_ends_again(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    source: DiskSource,
    boot: Callable[[], object],
    tmp_path: Path,
    proxy: FaultProxy,
) -> None:
    """For want of memory, perhaps: the read of QEMU fails in the end, and the keeper says why; later it goes on."""
    monkeypatch.setattr(qemu, "RECONNECT_S", 2)
    proxy.pause_s = 0.02
    broken = tmp_path / "broken"
    make = zstandard.ZstdDecompressor

    class Decompressor:
        def __init__(self) -> None:
            self.made = make()

        def __getattr__(self, name: str) -> Any:
            if broken.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return getattr(self.made, name)

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Decompressor)
    running = Running(store, source, tmp_path)
    try:
        running.feed.wait_s = 2
        until(lambda: bool(running.look() or (running.monitor.out == b"" and b"QMP" in running.said)))
        broken.touch()
        for pid in server_of(store):
            os.kill(pid, signal.SIGKILL)
        running.read(9_000_000, 70_000)
        assert "ends again and again: it has said nothing" in running.feed.failure
        broken.unlink()
        proxy.pause_s = 0
        until(running.look, 60)
        running.read(9_000_000, 70_000)
    finally:
        said = running.close()
    assert said.count("read failed: Input/output error") == 1, said
    assert said.count("70000/70000") == 1, said
