"""A guest that sends what a test says, in place of a sandbox: `connect` gives what `runner cp` would get from a keeper."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from runner.channel import messages
from runner.channel.copies.stream import HELLO
from runner.channel.messages import WINDOW, Decoder, frame, frame_number, number

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
        decoder = Decoder(messages.FROM_CLIENT)
        credit, output, wants_input, status, closed = messages.WINDOW, b"", False, 0, False
        while data := sock.recv(1 << 16):
            for kind, _, payload in decoder.feed(data):
                if kind == messages.EXEC:
                    argv = [word[4:] for word in payload.split(b"\0") if word.startswith(b"cmd=")]
                    self.started.append(argv)
                    output, status, errors = self._answer(argv)
                    wants_input = argv[1].startswith(b"unpack")
                    if errors:
                        sock.sendall(frame(messages.STDERR, errors))
                        credit -= len(errors)
                elif kind == messages.CREDIT:
                    credit += number(payload)
                elif kind == messages.STDIN:
                    self.received += payload
                    closed = not payload
                    if payload:
                        sock.sendall(frame_number(messages.CREDIT, len(payload)))
            while output and credit:
                piece = output[: min(credit, 32 << 10)]
                sock.sendall(frame(messages.STDOUT, piece))
                credit -= len(piece)
                output = output[len(piece) :]
            if not output and (closed or not wants_input or status):
                sock.sendall(frame_number(messages.EXIT, status))
                return


def sends(stream: bytes, status: int = 0, errors: bytes = b"") -> FakeGuest:
    """A guest whose every program writes `stream`."""
    return FakeGuest(lambda argv: (stream, status, errors))


class InitGuest:
    """The guest's init as a program of this machine: what is in the sandbox lies here too."""

    def __init__(self, init: Path, user: int | None = None) -> None:
        self._init = init
        self._user = user

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, sock: socket.socket) -> None:
        decoder = Decoder(messages.FROM_CLIENT)
        process: subprocess.Popen[bytes] | None = None
        room, changed = [WINDOW], threading.Condition()
        with sock:
            try:
                while data := sock.recv(1 << 16):
                    for kind, _, payload in decoder.feed(data):
                        if kind == messages.EXEC:
                            argv = [word[4:] for word in payload.split(b"\0") if word.startswith(b"cmd=")]
                            process = self._start(argv)
                            threading.Thread(target=_carry, args=(process, sock, room, changed), daemon=True).start()
                        elif kind == messages.CREDIT:
                            with changed:
                                room[0] += number(payload)
                                changed.notify_all()
                        elif kind == messages.STDIN and process is not None and process.stdin is not None:
                            _feed(process, payload)
                            if payload:
                                sock.sendall(frame_number(messages.CREDIT, len(payload)))
            except OSError:
                pass  # the client has gone
            if process is not None:
                process.kill()

    def _start(self, argv: list[bytes]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        environment = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}
        return subprocess.Popen(
            [self._init, *argv[1:]],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            user=self._user,
            env=environment,
        )


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        if not data:
            process.stdin.close()
        while data:
            data = data[process.stdin.write(data) :]
    except (BrokenPipeError, ValueError):
        pass  # it reads no more


def _carry(
    process: subprocess.Popen[bytes], sock: socket.socket, room: list[int], changed: threading.Condition
) -> None:
    def out(kind: int, fd: int) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            while data := os.read(fd, 32 << 10):
                while data:
                    with changed:
                        changed.wait_for(lambda: room[0] > 0)
                        piece = data[: room[0]]
                        room[0] -= len(piece)
                        sock.sendall(frame(kind, piece))
                    data = data[len(piece) :]

    assert process.stdout is not None
    assert process.stderr is not None
    errors = threading.Thread(target=out, args=(messages.STDERR, process.stderr.fileno()), daemon=True)
    errors.start()
    try:
        out(messages.STDOUT, process.stdout.fileno())
        errors.join()
        status = process.wait()
        sock.sendall(frame_number(messages.EXIT, status if status >= 0 else 128 - status))
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass


SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover")


def can_sanitize() -> bool:
    """Is there a gcc that builds programs with sanitizers?"""
    try:
        command = ["gcc", *SANITIZE, "-x", "c", "-o", "/dev/null", "-"]
        return subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def build_init(out: Path) -> None:
    """Build the guest's init for this machine, with sanitizers."""
    from imagetool.guest import init, prebuilt

    command = [
        "gcc",
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        *SANITIZE,
        "-o",
        str(out),
        *init.SOURCES,
    ]
    done = subprocess.run(command, cwd=prebuilt.SOURCE_DIR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def entry2(
    kind: bytes,
    name: bytes,
    target: bytes = b"",
    *,
    mode: int = 0o644,
    time: int = 0,
    size: int | None = None,
    data: bytes = b"",
    extents: list[tuple[int, int]] | None = None,
    tail: list[bytes] | None = None,
    state: int = 0,
) -> bytes:
    """An entry of version 2."""
    size = len(data) if size is None else size
    head = struct.pack("<cxHHIqQ", kind, len(name), len(target), mode, time, size) + name + target
    if kind != b"f":
        return head
    extents = ([(0, size)] if size else []) if extents is None else extents
    head += struct.pack("<I", len(extents)) + b"".join(struct.pack("<QQ", *extent) for extent in extents) + data
    return head + b"".join(struct.pack("<I", len(piece)) + piece for piece in tail or []) + struct.pack("<I", state)


END2 = entry2(b"e", b"", mode=0)


def stream2(*entries: bytes) -> bytes:
    """All of version 2's stream."""
    return HELLO + b"".join(entries) + END2
