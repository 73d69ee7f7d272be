"""A small NBD client, and a machine's side of a disk's server: connections that are handed over, as a keeper does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from rootdisk.errors import RootdiskError
from rootdisk.oci.repository import RegistryOptions
from runner.lazy.start import attach, enter
from runner.store import filling
from runner.store.filling import DiskSource
from runner.store.store import Store
from tests.support.processes import open_files
from tests.support.waiting import until

QUICK = RegistryOptions(plain_http=True, connect_timeout_s=2, read_timeout_s=0.5, give_up_s=3)
PATIENT = RegistryOptions(plain_http=True)
READ = 0


class NbdError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Client:
    """Speaks NBD on a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        assert self.take(8) == b"NBDMAGIC"
        assert self.take(8) == b"IHAVEOPT"
        self.take(2)
        self.sock.sendall(struct.pack(">I", 3))
        self.sock.sendall(struct.pack(">8sIIIH", b"IHAVEOPT", 7, 6, 0, 0))
        self.size = 0
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            data = self.take(length)
            if kind == 1:
                break
            assert kind == 3
            if data[:2] == b"\0\0":
                (self.size,) = struct.unpack_from(">Q", data, 2)

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    def ask(self, offset: int, length: int, cookie: int = 1, kind: int = READ) -> None:
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length))

    def answer(self, lengths: dict[int, int]) -> tuple[int, bytes]:
        """The next answer: its cookie and data. `lengths` has the length of each read by cookie."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698, (hex(magic), error, cookie)
        if error:
            raise NbdError(error)
        return cookie, self.take(lengths.get(cookie, 0))

    def read(self, offset: int, length: int) -> bytes:
        self.ask(offset, length)
        return self.answer({1: length})[1]

    def close(self) -> None:
        self.sock.close()


class Machine:
    """A sandbox of a disk: attached to its server, and able to connect to it again."""

    def __init__(self, store: Store, source: DiskSource) -> None:
        self.store, self.source = store, source
        self.server = enter(store, source)
        self.client = self.connect()

    def connect(self) -> Client:
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        filling.send(self.server, {"do": "serve"}, [theirs.fileno()])
        theirs.close()
        return Client(ours)

    def again(self) -> None:
        """Connect to the server that is there now, or to a new one."""
        self.close()
        self.server, _ = attach(self.store, self.source)
        self.client = self.connect()

    def read(self, offset: int, length: int) -> bytes:
        """Read, if need be from another server, as QEMU does."""
        while True:
            try:
                return self.client.read(offset, length)
            except (OSError, RootdiskError):
                with contextlib.suppress(OSError):  # the next one may end as well
                    self.again()

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextlib.contextmanager
def listening(machine: Machine, folder: Path) -> Iterator[str]:
    """A URI for other clients; each of their connections is handed to the server."""
    path = folder / "nbd"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    filling.send(machine.server, {"do": "serve"}, [sock.fileno()])
                    sock.close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"nbd+unix:///?socket={path}"
        listener.shutdown(socket.SHUT_RDWR)


def end_servers(store: Store) -> None:
    """End all servers of a store, and wait for that."""
    for pid in server_of(store):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)
    until(lambda: not server_of(store))


def server_of(store: Store) -> list[int]:
    """Processes that serve disks of a store."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"runner: serves disk") and any(
                name.startswith(str(store.root)) for name in open_files(process.name).values()
            ):
                found.append(int(process.name))
    return found
