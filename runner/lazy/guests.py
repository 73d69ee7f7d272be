"""The NBD connection of one machine: requests in, answers out, without ever blocking the server."""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from typing import NamedTuple, Protocol

from runner.lazy import nbd

_REQUESTS_BYTES = 64 * nbd.REQUEST.size  # read at once
_WAITING_MAX = 1024  # reads of a guest that wait; QEMU sends 16
_DIRECT_BYTES = 64 << 10  # up to this size an answer is one call; above, the kernel copies from the file


class Reader(Protocol):
    """Answers reads."""

    def read(self, guest: Guest, cookie: int, offset: int, length: int) -> None:
        """Answer a read that is inside the disk, now or later."""


class Asker(Protocol):
    """Gets the answer to a read."""

    def answer(self, fd: int, cookie: int, offset: int, length: int) -> None:
        """Take the answer, which is in the file `fd`."""

    def refuse(self, cookie: int, error: int) -> None:
        """Take the answer that the read has failed, with an error number of NBD."""


class Read(NamedTuple):
    """A read that waits for chunks."""

    guest: Asker
    cookie: int
    offset: int
    length: int
    missing: set[int]  # numbers of chunks
    since: float  # time.monotonic()


class Guest:
    """A connection of a machine."""

    def __init__(self, sock: socket.socket, poll: select.epoll, size: int) -> None:
        """Serve a disk of `size` bytes on `sock`, whose events `poll` reports."""
        sock.setblocking(False)
        self.sock, self.fd = sock, sock.fileno()
        self.record: int | None = None  # a file for its reads
        self._has_read = False
        self._poll, self._size = poll, size
        self._handshake: nbd.Handshake | None = nbd.Handshake(size)
        self._rest = b""
        # Bytes, or offset and end of a part of a file with its descriptor.
        self._out: deque[memoryview | tuple[int, int, int]] = deque()
        self._waiting = 0
        self._is_blocked = False  # the other side does not take what is queued
        poll.register(self.fd, select.EPOLLIN)

    @property
    def is_starting(self) -> bool:
        """Return whether the machine has not read yet: its kernel starts."""
        return not self._has_read

    def close(self) -> None:
        """Close the connection."""
        self._poll.unregister(self.fd)
        self.sock.close()
        if self.record is not None:
            os.close(self.record)

    def greet(self) -> None:
        """Begin the handshake."""
        self._send(nbd.GREETING)

    def carry(self, events: int, reader: Reader) -> bool:
        """Handle events of the socket. Return False if the connection is to be closed."""
        try:
            if events & select.EPOLLOUT:
                self._flush()
            elif events & select.EPOLLIN:
                return self._receive(reader)
            else:
                return False
        except BlockingIOError:
            pass
        except (OSError, nbd.ProtocolError):
            return False
        return True

    def _receive(self, reader: Reader) -> bool:
        data = self.sock.recv(_REQUESTS_BYTES)
        if not data:
            return False
        if self._handshake is not None:
            self._send(self._handshake.feed(data))
            if self._handshake.has_left:
                return False
            if not self._handshake.is_over:
                return True
            data = bytes(self._handshake.rest)
            self._handshake = None
        if self._rest:
            data = self._rest + data
        end = len(data) - len(data) % nbd.REQUEST.size
        self._rest = data[end:]
        for magic, _, kind, cookie, offset, length in nbd.REQUEST.iter_unpack(data[:end]):
            if magic != nbd.REQUEST_MAGIC or self._waiting > _WAITING_MAX:
                return False
            if kind == nbd.CMD_READ:
                if not 0 < length <= nbd.READ_MAX_BYTES or offset + length > self._size:
                    self._send(nbd.reply_head(cookie, nbd.EINVAL))
                    continue
                if self.record is not None:
                    os.write(self.record, b"%d %d\n" % (offset, length))
                self._waiting += 1
                self._has_read = True
                reader.read(self, cookie, offset, length)
            elif kind in (nbd.CMD_FLUSH, nbd.CMD_CACHE):
                self._send(nbd.reply_head(cookie))
            else:  # the end; or a write, which a client does not send to a read-only export
                return False
        return True

    def answer(self, fd: int, cookie: int, offset: int, length: int) -> None:
        """Answer a read from the file `fd`."""
        self._waiting -= 1
        if length > _DIRECT_BYTES or self._out:  # what must wait is not read into memory
            self._out.append(memoryview(nbd.reply_head(cookie)))
            self._out.append((fd, offset, offset + length))
            self._push()
            return
        try:
            data = os.pread(fd, length, offset)
        except OSError:  # a bad sector
            data = b""
        if len(data) != length:
            self._send(nbd.reply_head(cookie, nbd.EIO))
        else:
            self._send_now(nbd.reply_head(cookie), data)

    def refuse(self, cookie: int, error: int) -> None:
        """Answer a read with an error number of the protocol."""
        self._waiting -= 1
        self._send(nbd.reply_head(cookie, error))

    def _send_now(self, head: bytes, data: bytes) -> None:
        try:
            sent = self.sock.sendmsg((head, data))
        except BlockingIOError:
            sent = 0
        except OSError:  # it has gone: the next event says so
            return
        if sent < len(head) + len(data):
            self._send((head + data)[sent:])

    def _send(self, data: bytes) -> None:
        if data:
            self._out.append(memoryview(data))
            self._push()

    def _push(self) -> None:
        """Send what is queued as far as the other side takes it. Nothing is read meanwhile."""
        try:
            self._flush()
        except BlockingIOError:
            self._is_blocked = True
            self._poll.modify(self.fd, select.EPOLLOUT)
        except OSError:  # it has gone: the next event says so
            self._out.clear()

    def _flush(self) -> None:
        while self._out:
            first = self._out[0]
            if isinstance(first, memoryview):
                sent = self.sock.send(first)
                rest: memoryview | tuple[int, int, int] | None = first[sent:] if sent < len(first) else None
            else:
                fd, at, end = first
                sent = os.sendfile(self.fd, fd, at, end - at)
                if not sent:
                    raise OSError("the file ends early")
                rest = (fd, at + sent, end) if at + sent < end else None
            if rest is None:
                self._out.popleft()
            else:
                self._out[0] = rest
        if self._is_blocked:
            self._is_blocked = False
            self._poll.modify(self.fd, select.EPOLLIN)
