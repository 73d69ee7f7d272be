"""A guest that sends what a test says, in place of a sandbox: `connect` gives what `runner cp` would get from a keeper."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

from runner import frames
from runner.frames import Decoder, frame, frame_number, number

Answer = tuple[bytes, int, bytes]  # output, exit status, standard error


class FakeGuest:
    """Answers each program that is started in it with `answer(argv)`; its input is kept in `received`."""

    def __init__(self, answer: Callable[[list[bytes]], Answer]) -> None:
        self._answer = answer
        self._threads: list[threading.Thread] = []
        self.received = b""
        self.started: list[list[bytes]] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return ours

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                self._talk(sock)
            except OSError:
                pass  # the client has gone

    def _talk(self, sock: socket.socket) -> None:
        decoder = Decoder(frames.FROM_CLIENT)
        credit, output, wants_input, status, closed = frames.WINDOW, b"", False, 0, False
        while data := sock.recv(1 << 16):
            for kind, _, payload in decoder.feed(data):
                if kind == frames.EXEC:
                    argv = [word[4:] for word in payload.split(b"\0") if word.startswith(b"cmd=")]
                    self.started.append(argv)
                    output, status, errors = self._answer(argv)
                    wants_input = argv[1].startswith(b"unpack")
                    if errors:
                        sock.sendall(frame(frames.STDERR, errors))
                        credit -= len(errors)
                elif kind == frames.CREDIT:
                    credit += number(payload)
                elif kind == frames.STDIN:
                    self.received += payload
                    closed = not payload
                    if payload:
                        sock.sendall(frame_number(frames.CREDIT, len(payload)))
            while output and credit:
                piece = output[: min(credit, 32 << 10)]
                sock.sendall(frame(frames.STDOUT, piece))
                credit -= len(piece)
                output = output[len(piece) :]
            if not output and (closed or not wants_input or status):
                sock.sendall(frame_number(frames.EXIT, status))
                return


def sends(stream: bytes, status: int = 0, errors: bytes = b"") -> FakeGuest:
    """A guest whose every program writes `stream`."""
    return FakeGuest(lambda argv: (stream, status, errors))


def entry1(
    kind: bytes,
    name: bytes,
    target: bytes = b"",
    *,
    mode: int = 0o644,
    time: int = 0,
    size: int | None = None,
    data: bytes = b"",
) -> bytes:
    """An entry of version 1 of the stream."""
    size = len(data) if size is None else size
    return struct.pack("<cxHHIqQ", kind, len(name), len(target), mode, time, size) + name + target + data
