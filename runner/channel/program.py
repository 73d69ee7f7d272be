"""A program in a guest whose standard input and output this process reads and writes."""

from __future__ import annotations

import select
import socket
import time

from rootdisk.errors import RootdiskError
from rootdisk.records import pack as pack_records
from rootdisk.text import printable
from runner.channel import messages
from runner.channel.messages import WINDOW, Decoder, frame, frame_number, number

_ERRORS_MAX_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
_RECEIVE_BYTES = 256 << 10
_CREDIT_BYTES = WINDOW // 4  # consumed output is reported to the guest in steps of this size
_UNSENT_MAX_BYTES = 2 * _PIECE_BYTES


class Ended(RootdiskError):
    """The program has ended and reads no more input; its error output says why."""


class Program:
    """A program in a guest, run as root there.

    It may send only what it was allowed to, so at most WINDOW bytes are held here, whatever the guest does.
    """

    def __init__(self, sock: socket.socket, argv: list[bytes]) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._credit = WINDOW  # bytes that the guest still accepts
        self._allowed = WINDOW  # bytes that it may still send
        self._input = bytearray()
        self._out = bytearray()
        self._unreported = 0  # bytes consumed here that the guest has not been told of
        self._unsent = bytearray()
        self._errors = bytearray()
        self.errors_are_cut = False
        self.status: int | None = None
        words = [("cmd", word) for word in argv]
        request = [*words, ("user", b"0"), ("workdir", b"/"), ("stdin", b"1")]
        self._send(frame(messages.EXEC, pack_records(request)))

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes of its output; b"" at the end."""
        while not self._out and self.status is None:
            self._receive()
        data = bytes(self._out[:count])
        del self._out[:count]
        self._unreported += len(data)
        if self._unreported >= _CREDIT_BYTES:
            self._allow()
            self._push()
        return data

    def answers(self, seconds: float) -> bool:
        """Return whether it sends something or ends within `seconds`."""
        end = time.monotonic() + seconds
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        while not self._out and self.status is None:
            if not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
                return False
            self._receive()
        return True

    def read_exactly(self, count: int) -> bytes:
        """Read `count` bytes; fewer only at the end."""
        data = bytearray()
        while len(data) < count and (piece := self.read(count - len(data))):
            data += piece
        return bytes(data)

    def write(self, data: bytes) -> None:
        """Queue `data` for its input; Ended if it ends before it has read everything."""
        self._input += data
        if len(self._input) >= _PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send all queued input."""
        while self._input:
            while not self._credit:
                self._receive()
            if self.status is not None:
                raise Ended("cp: the program in the sandbox has ended early")
            piece = bytes(self._input[: min(self._credit, _PIECE_BYTES)])
            del self._input[: len(piece)]
            self._credit -= len(piece)
            self._send(frame(messages.STDIN, piece))

    def finish(self) -> None:
        """Close its input and wait until it ends; then `status` is set."""
        self.flush()
        if self.status is None:
            self._send(frame(messages.STDIN))
        while self.status is None:
            self._receive()

    def errors(self) -> list[bytes]:
        """Return its error output as lines."""
        return [line for line in bytes(self._errors).replace(b"\0", b"\n").split(b"\n") if line.strip()]

    def _allow(self) -> None:
        """Allow it to send as many bytes as were consumed, unless it does not even read such frames."""
        if self._unreported >= _CREDIT_BYTES and len(self._unsent) <= _UNSENT_MAX_BYTES:
            self._unsent += frame_number(messages.CREDIT, self._unreported)
            self._allowed += self._unreported
            self._unreported = 0

    def _send(self, data: bytes) -> None:
        self._unsent += data
        self._push()

    def _push(self) -> None:
        """Send what is queued, and receive meanwhile: a guest may be unable to read before it has written."""
        if not self._unsent:
            return
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN | select.POLLOUT)
        while self._unsent:
            ((_, events),) = waiting.poll()
            if events & ~select.POLLOUT:
                self._take()
            else:
                # After the program has ended, the other side may be gone; its output must still be read.
                try:
                    del self._unsent[: self._sock.send(self._unsent[:_PIECE_BYTES], socket.MSG_DONTWAIT)]
                except BlockingIOError:
                    continue
                except OSError:
                    self._unsent.clear()

    def _receive(self) -> None:
        """Wait until it sends something."""
        self._take()
        self._push()

    def _take(self) -> None:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            if self.status is None:
                raise RootdiskError("cp: the sandbox has ended")
            self._unsent.clear()
        for kind, _, payload in self._decoder.feed(data):
            if kind in (messages.STDOUT, messages.STDERR):
                self._allowed -= len(payload)
                if self._allowed < 0:
                    raise RootdiskError("cp: the sandbox sends more than it was allowed")
            if kind == messages.STDOUT:
                self._out += payload
            elif kind == messages.STDERR:
                room = _ERRORS_MAX_BYTES - len(self._errors)
                self._errors += payload[:room]
                self.errors_are_cut |= len(payload) > room
                self._unreported += len(payload)
                self._allow()
            elif kind == messages.CREDIT:
                self._credit = min(WINDOW, self._credit + number(payload))
            elif kind == messages.EXIT:
                self.status = number(payload) & 0xFF
                self._credit = WINDOW
            elif kind == messages.ERROR:
                raise RootdiskError(f"cp: {printable(payload)}")
