"""The channel to the guest's init: frames over the virtio serial port; docs/layout-1.md, "The channel".

`Decoder` and the packing functions are pure. `Channel` carries one foreground session over a connected socket. What
comes from the guest is hostile: lengths are bounded, unknown frames are errors, and nothing is buffered without bound.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator

from runner.errors import RootdiskError

READY, STDOUT, STDERR, EXIT, ERROR, LOG = 1, 2, 3, 4, 5, 6
STDIN, RESIZE, SIGNAL, EXEC, ACK, STOP, CREDIT = 16, 17, 18, 19, 20, 21, 22

HEADER = struct.Struct("<IBBH")
PAYLOAD_MAX = 1 << 20
WINDOW = 256 << 10  # bytes of one session's data under way in each direction
KILL_GRACE_S = 5.0
POLL_S = 0.2


class GuestError(RootdiskError):
    """The guest says why the sandbox failed."""


class TimeOut(RootdiskError):
    """The deadline has passed."""


def frame(kind: int, payload: bytes = b"", session: int = 0) -> bytes:
    """One frame."""
    return HEADER.pack(len(payload), kind, 0, session) + payload


class Decoder:
    """Bytes in, frames out: (type, session, payload)."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that are whole with `data`; GuestError on what no init of ours sends."""
        self._data += data
        while len(self._data) >= HEADER.size:
            length, kind, zero, session = HEADER.unpack_from(self._data)
            if length > PAYLOAD_MAX or zero or kind not in (READY, STDOUT, STDERR, EXIT, ERROR, LOG, CREDIT):
                raise GuestError("the guest does not keep to the channel's protocol", "was it built by this rootdisk?")
            end = HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[HEADER.size : end])
            del self._data[:end]
            yield kind, session, payload


class Channel:
    """The main program's session from boot to exit, over `sock`; not for several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._out = bytearray()
        self._decoder = Decoder()
        self._credit = WINDOW  # bytes of input the guest still takes
        self._ready = False
        self._status: int | None = None
        self._stopped: float | None = None
        self.logs: list[str] = []

    def send_signal(self, number: int) -> None:
        self._send(SIGNAL, struct.pack("<I", number))

    def resize(self, rows: int, columns: int) -> None:
        self._send(RESIZE, struct.pack("<HH", rows & 0xFFFF, columns & 0xFFFF))

    def stop(self, seconds: int) -> None:
        """The stop signal now, SIGKILL after `seconds`; later calls do nothing."""
        if self._stopped is None:
            self._stopped = time.monotonic() + seconds
            self._send(STOP, struct.pack("<I", seconds))

    def run(
        self,
        *,
        stdin: int | None,
        stdout: int,
        stderr: int,
        deadline: float | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> int:
        """Carry everything until the program has ended; its exit status.

        `deadline` is of time.monotonic(). GuestError with the guest's reason; TimeOut at the deadline; GuestError
        with the text "" where the machine has gone without a word (the console then says why).
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            while self._status is None:
                self._flush()
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
                selector.modify(self._sock, events)
                # Files are always ready and epoll refuses them, so they are read without asking.
                reading = stdin is not None and self._ready and self._credit > 0 and not self._out
                plain = False
                if reading and stdin is not None:
                    try:
                        selector.register(stdin, selectors.EVENT_READ)
                    except KeyError:
                        pass
                    except PermissionError:
                        plain = True
                elif stdin is not None and stdin in selector.get_map():
                    selector.unregister(stdin)
                wait = 0.0 if plain else self._wait(deadline)
                ready = {key.fd for key, mask in selector.select(wait) if mask & selectors.EVENT_READ}
                if self._sock.fileno() in ready:
                    self._receive(stdout, stderr, on_ready)
                if stdin is not None and (plain or stdin in ready):
                    stdin = self._input(stdin, selector)
                now = time.monotonic()
                if deadline is not None and now > deadline and self._status is None:
                    raise TimeOut("the sandbox's time is over")
                if self._stopped is not None and now > self._stopped + KILL_GRACE_S and self._status is None:
                    raise GuestError("the guest did not stop", "its console may say why")
        return self._status

    def acknowledge(self) -> None:
        """Let the guest power off."""
        self._send(ACK, b"")
        self._sock.settimeout(2)
        try:
            self._sock.sendall(self._out)
        except OSError:
            pass  # it has gone already
        self._out.clear()

    def _wait(self, deadline: float | None) -> float:
        ends = [end for end in (deadline, self._stopped and self._stopped + KILL_GRACE_S) if end]
        # A signal handler may have queued a frame, and select goes on waiting after it: look five times a second.
        return min(POLL_S, max(0.0, min(ends, default=time.monotonic() + 1) - time.monotonic()) + 0.01)

    def _send(self, kind: int, payload: bytes) -> None:
        self._out += frame(kind, payload)

    def _flush(self) -> None:
        while self._out:
            try:
                del self._out[: self._sock.send(self._out)]
            except BlockingIOError:
                return
            except OSError as err:
                raise GuestError("") from err

    def _input(self, stdin: int, selector: selectors.BaseSelector) -> int | None:
        data = os.read(stdin, min(self._credit, 64 << 10))
        self._credit -= len(data)
        self._send(STDIN, data)
        if data:
            return stdin
        if stdin in selector.get_map():
            selector.unregister(stdin)
        return None

    def _receive(self, stdout: int, stderr: int, on_ready: Callable[[], None] | None) -> None:
        try:
            data = self._sock.recv(256 << 10)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise GuestError("")
        for kind, session, payload in self._decoder.feed(data):
            if session:
                continue
            if kind in (STDOUT, STDERR):
                _write_all(stdout if kind == STDOUT else stderr, payload)
                self._send(CREDIT, struct.pack("<I", len(payload)))
            elif kind == READY:
                self._ready = True
                if on_ready is not None:
                    on_ready()
            elif kind == EXIT:
                self._status = _number(payload) & 0xFF
            elif kind == ERROR:
                raise GuestError(payload.decode(errors="replace"))
            elif kind == CREDIT:
                self._credit = min(WINDOW, self._credit + _number(payload))
            else:
                self.logs = [*self.logs[-99:], payload.decode(errors="replace")]


def _number(payload: bytes) -> int:
    if len(payload) != 4:
        raise GuestError("the guest does not keep to the channel's protocol")
    return int.from_bytes(payload, "little")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
