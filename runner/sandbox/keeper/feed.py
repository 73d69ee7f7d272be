"""Connect a machine to the server of its disk, as long as the disk is not complete.

QEMU connects to a socket in the sandbox's directory, by a descriptor that it inherits. The keeper accepts, and hands the
connection to the server. If the server is killed, QEMU connects again, and the keeper finds or starts another server. Until
then the reads of the guest wait. When the disk is complete, QEMU gets its file in place of the server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rootdisk.durable import open_file
from rootdisk.errors import Busy, RootdiskError
from rootdisk.system.sockets import listening
from rootdisk.text import printable
from runner.lazy import start
from runner.lazy.served import ServedDisk
from runner.sandbox.keeper.room import Monitor
from runner.store import filling
from runner.store.store import Store

HANDED_OVER = "handed over"
_NAME = "base"
_START_S = 2.0  # for a new server, while the keeper does nothing else
_AGAIN_S = 1.0
_USELESS_MAX = 5  # servers in a row that end early and have fetched nothing
_EARLY_S = 10.0


class Feed:
    """The socket that QEMU connects to, and the connection to the server."""

    def __init__(self, store: Store, served: ServedDisk, folder: Path) -> None:
        """Create the socket in `folder`."""
        self.path = folder / _NAME
        self.failure = ""  # why reads have failed, as long as they may fail again
        self.wait_s = 0  # how long QEMU waits for a server
        self._trouble = ""  # why the server is missing
        self.orders = b""  # to QEMU: to read the file; with the id HANDED_OVER
        self._store, self._source = store, served.source
        self._record = served.record
        self._server: socket.socket | None = served.server
        self._waiting: socket.socket | None = None  # a connection of QEMU that no server has got
        self._again_at = 0.0
        self._is_complete = False
        self._has_lost = False  # a server has ended
        self._has_ordered = False  # QEMU has not replied yet
        self._useless = 0  # servers in a row
        self._found_at = time.monotonic()
        self._found_blocks = self._blocks()
        self.listener = listening(folder, _NAME, 4)
        # QEMU may be another user, and has the descriptor. Nobody else gets through the directory, which is private.
        self.path.chmod(0o666)
        for sock in (self.listener, served.server):
            sock.setblocking(False)

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets to wait for."""
        return [self.listener, self._server] if self._server is not None else [self.listener]

    @property
    def next_look(self) -> float | None:
        """The time of the next attempt to find a server (monotonic seconds)."""
        return self._again_at if self._server is None else None

    def accept(self) -> None:
        """Take a connection of QEMU, which has one at a time."""
        with contextlib.suppress(OSError):
            sock, _ = self.listener.accept()
            if self._waiting is not None:
                self._waiting.close()
            self._waiting = sock

    def hear(self) -> Iterator[str]:
        """Yield what the server says for the user. Its end is not reported: another one is started."""
        while self._server is not None:
            try:
                received = filling.receive(self._server)
            except (BlockingIOError, TimeoutError):
                return
            if received is None:
                self._server.close()
                self._server = None
                self._has_lost = True
                self._again_at = now = time.monotonic()
                is_useless = now - self._found_at < _EARLY_S and self._blocks() == self._found_blocks
                self._useless = self._useless + 1 if is_useless else 0
                return
            message, _ = received
            if message.get("is") == "asks":
                self._try_to_serve(message.get("chunk"))
            self._is_complete |= message.get("is") == "complete"
            text = printable(str(message.get("text", "")))
            if message.get("is") == "lost":
                self.failure = text
            elif self._is_complete:
                self.failure = ""
            if text:
                yield text

    def _try_to_serve(self, chunk: object) -> None:
        """Have a new server take the place of one that cannot fetch a chunk, if that can be fetched from where this sandbox is from."""
        chunks = self._source.chunk_index.chunks
        if isinstance(chunk, int) and 0 <= chunk < len(chunks) and not chunks[chunk].zero:
            with contextlib.suppress(OSError):  # no more processes are allowed
                start.succeed(self._store, self._source, chunk)

    def take_loss(self) -> bool:
        """Return whether a server has ended since the last call. QEMU's connection may not have been handed over yet."""
        list(self.hear())
        is_lost, self._has_lost = self._has_lost, False
        return is_lost

    def connect(self) -> str:
        """Find or start a server if there is none, and hand over the connection of QEMU.

        Return what there is to say for the user: why the server is missing. It is said once.
        """
        said = ""
        now = time.monotonic()
        if self._server is None and now >= self._again_at:
            self._again_at = now + _AGAIN_S
            try:
                if self._useless >= _USELESS_MAX:  # QEMU would ask each one for the same, without end
                    self._useless = 0
                    self._again_at = now + self.wait_s + _AGAIN_S
                    what = f"the server of disk {self._source.digest.short} ends again and again"
                    raise RootdiskError(f"{what}: {start.last_words(self._store, self._source)}")
                self._server, status = start.attach(self._store, self._source, _START_S)
                self._server.setblocking(False)
                self._found_at, self._found_blocks = now, self._blocks()
                self._is_complete |= status.is_complete
                if self.failure == self._trouble:
                    self.failure = ""
                self._trouble = ""
            except Busy:  # it starts, or hangs: the next attempt tells
                pass
            except (RootdiskError, OSError) as err:
                said = f"reads of the disk wait, for {self.wait_s} s at most: {printable(str(err))}"
                if said == self._trouble:
                    said = ""
                else:
                    self.failure = self._trouble = said
        if self._server is not None and self._waiting is not None:
            fds = [self._waiting.fileno()] + ([self._record] if self._record is not None else [])
            with contextlib.suppress(OSError):
                filling.send(self._server, {"do": "serve"}, fds)
                self._waiting.close()
                self._waiting = None
        return said

    def _blocks(self) -> int:
        """Return what the store has of the disk, in blocks."""
        with contextlib.suppress(OSError):
            return self._store.partial(self._source.digest).lstat().st_blocks
        return -1

    def hand_over(self, monitor: Monitor, sock: socket.socket) -> bool:
        """Give QEMU the file of the disk when that is complete. Return whether it has it: then it needs no server.

        If QEMU refuses, the server goes on. `sock` is connected to the monitor.
        """
        if self._is_complete and self.orders and not monitor.out and self._record is None:
            orders, self.orders = self.orders, b""
            self._has_ordered = True
            try:
                fd = open_file(self._store.disk(self._source.digest))
                try:
                    monitor.out += orders[socket.send_fds(sock, [orders], [fd]) :]
                finally:
                    os.close(fd)
            except OSError as err:
                _note_refusal(str(err.strerror))
        reply, monitor.reply = monitor.reply, None
        if not self._has_ordered or reply is None or reply["id"] != HANDED_OVER:
            return False
        self._has_ordered = False
        if "return" in reply:
            return True
        _note_refusal(str(reply))
        return False

    def close(self) -> None:
        """Close all sockets."""
        for sock in (*self.sockets, self._waiting):
            if sock is not None:
                sock.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def _note_refusal(why: str) -> None:
    with contextlib.suppress(OSError):  # the disk of the log may be full
        print(
            f"the disk's server goes on, although the disk is complete: {printable(why)}", file=sys.stderr, flush=True
        )
