"""What a guest says: frames, the router, a client's session, and copies in both directions."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import socket
import struct
import sys
import tarfile
import threading
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast
from unittest import mock

import zstandard

from runner.channel import messages
from runner.channel.copies import command
from runner.channel.messages import HEADER, PAYLOAD_MAX, REQUEST_MAX, WINDOW, Decoder, frame, frame_number
from runner.channel.session import Session
from runner.sandbox.routing.connections import CLIENTS_MAX, VISITORS_MAX
from runner.sandbox.routing.router import Router
from tests.fuzz.target import Target, folder


def decoder(data: bytes) -> None:
    """Cut in pieces as the first byte says, and whole: the same frames."""
    step, stream = (data[0] % 40 + 1, data[1:]) if data else (1, b"")
    one, other = Decoder(messages.FROM_GUEST, 1000), Decoder(messages.FROM_GUEST, 1000)
    found = []
    for at in range(0, len(stream), step):
        one.add(stream[at : at + step])
        while (taken := one.take()) is not None:
            found.append(taken)
        assert len(one) <= HEADER.size + 1000 + step
    assert sum(len(payload) for _, _, payload in found) <= len(stream)
    if all(kind != messages.INVALID for kind, _, _ in found):
        assert list(other.feed(stream)) == found
    else:
        list(other.feed(stream))


def router(data: bytes) -> None:
    """Steps: a byte that says who does what, then its bytes."""
    one = Router((lambda *_: None) if data[:1] == b"d" else None)
    clients = [one.main]
    at = 1
    while at < len(data):
        step, size = data[at], data[at + 1] if at + 1 < len(data) else 0
        piece = data[at + 2 : at + 2 + size]
        client = clients[step >> 4 & 7] if step >> 4 & 7 < len(clients) else clients[-1]
        at += 2
        match step & 7:
            case 0 | 1:
                one.from_guest(piece[: one.guest_wants()])
                at += size
            case 2:
                one.from_client(client, piece[: one.wants(client)])
                at += size
            case 3:
                if (oldest := one.too_many()) is not None:
                    clients = [known for known in clients if known is not oldest]
                    one.leave(oldest)
                clients.append(one.join())
            case 4:
                one.sent_to_guest(len(one.to_guest()[: size << 8]))
            case 5:
                one.sent_to_client(client, len(one.to_client(client)[: size << 8]))
            case 6 if len(clients) > 1 and client is not one.main:
                clients.remove(client)
                one.leave(client)
            case _:  # a whole frame, of a session that is likely
                kind, long = size & 63, 1000 if step & 8 else 4
                one.from_guest(frame(kind, bytes(long), step >> 4 & 3)[: one.guest_wants()])
        assert one.held <= len(one.clients) * 2 * WINDOW + (1 << 20)
        assert len(one.clients) <= CLIENTS_MAX + VISITORS_MAX + 1
    one.finish(0, "")


@cache
def _nowhere() -> tuple[int, int]:
    """Standard output and errors of this process, and what they become: nothing."""
    return os.dup(2), os.open(os.devnull, os.O_WRONLY)


def _said(data: bytes) -> socket.socket:
    """A connection to a keeper that says `data` and is gone."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
    return ours


def session(data: bytes) -> None:
    """The client of `boot`: what the keeper makes for it of what a guest says."""
    keeper = Router(None)
    for at in range(0, len(data), 1000):
        keeper.from_guest(data[at : at + 1000])
    keeper.finish(0, str(keeper.error or ""))
    said = bytearray()
    while part := bytes(keeper.to_client(keeper.main)):
        said += part
        keeper.sent_to_client(keeper.main, len(part))
    saved = os.dup(1), os.dup(2)
    for fd in (1, 2):
        os.dup2(_nowhere()[1], fd)
    try:
        with _said(bytes(said)) as sock:
            Session(sock).run(stdin=None, terminal=False)
    finally:
        for fd, one in zip((1, 2), saved, strict=True):
            os.dup2(one, fd)
            os.close(one)


def _stream(data: bytes) -> bytes:
    """`data` as a program's output, and its end."""
    pieces = [data[at : at + 30_000] for at in range(0, len(data), 30_000)]
    return b"".join(frame(messages.STDOUT, piece) for piece in pieces) + frame_number(messages.EXIT, 0)


def program(data: bytes) -> None:
    """Frames of any kind for `cp`."""
    _copy_out(data)


def copy_out(data: bytes) -> None:
    """The stream of files; it lies below the target, whatever it says."""
    kind, stream = data[:1], data[1:]
    _copy_out(_stream(stream), kind)


def _copy_out(said: bytes, kind: bytes = b"") -> None:
    place = folder() / "cp"
    shutil.rmtree(place, ignore_errors=True)
    (place / "target/x").mkdir(parents=True)
    (place / "target/file").write_text("mine")
    (place / "outside").write_text("mine")
    (place / "target/link").symlink_to("../outside")
    source, target = {b"d": ("/a/x", "target"), b"f": ("/a/file", "target/file"), b"n": ("/a/new", "target/new"), b"c": ("/a/.", "target"), b"l": ("/a/y", "target/link")}.get(kind, ("/a/x", "target"))  # fmt: skip
    try:
        with mock.patch.object(sys, "stderr", io.StringIO()) as errors:
            command.copy_out(lambda: _said(said), source, str(place / target))
    finally:
        _check(place)
        assert all(line.isprintable() for line in errors.getvalue().splitlines())


def _check(place: Path) -> None:
    assert sorted(os.listdir(place)) == ["outside", "target"]
    outside = place / "outside"
    assert not outside.is_symlink()
    for path in place.rglob("*"):
        info = path.lstat()
        assert not info.st_mode & 0o6000, path
    with suppress(OSError):
        for path in (place, *place.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


def copy_tar(data: bytes) -> None:
    """`cp NAME:PATH -`: whoever reads the archive finds names below its root only."""
    out = io.TextIOWrapper(io.BytesIO())
    with mock.patch.object(sys, "stdout", out), mock.patch.object(sys, "stderr", io.StringIO()):
        command.copy_out(lambda: _said(_stream(data)), "/a/x", "-")
    out.flush()
    links = set()
    with tarfile.open(fileobj=io.BytesIO(out.buffer.getvalue())) as archive:
        for member in archive:
            parts = member.name.split("/")
            assert parts[0] == "x", member.name
            assert not {"..", "", "."} & set(parts), member.name
            assert not any("/".join(parts[:count]) in links for count in range(1, len(parts))), member.name
            if not member.isdir():
                links.add(member.name)


INPUT_MAX_BYTES = 4 << 20


def _unpacking() -> socket.socket:
    """A guest that unpacks what comes, and has had enough at INPUT_MAX_BYTES: what a sparse file is long is no fault."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=_unpack, args=(theirs,), daemon=True).start()
    return ours


def _unpack(sock: socket.socket) -> None:
    received = 0
    wire = Decoder(messages.FROM_CLIENT)
    with sock, suppress(OSError):
        while (data := sock.recv(1 << 16)) and received < INPUT_MAX_BYTES:
            for kind, _, payload in wire.feed(data):
                if kind == messages.EXEC and b"cmd=unpack2\0" in payload:
                    sock.sendall(frame(messages.STDOUT, HELLO))
                elif kind == messages.STDIN:
                    received += len(payload)
                    sock.sendall(
                        frame_number(messages.CREDIT, len(payload)) if payload else frame_number(messages.EXIT, 0)
                    )


def copy_in(data: bytes) -> None:
    """`cp - NAME:PATH`: a tar archive on standard input."""
    threading.stack_size(256 << 10)
    standard = io.TextIOWrapper(cast(BinaryIO, io.BufferedReader(io.BytesIO(data))))
    with mock.patch.object(sys, "stdin", standard), mock.patch.object(sys, "stderr", io.StringIO()):
        command.copy_in(_unpacking, "-", "/a")


HELLO = b"RDCOPY2\n"
HEAD = struct.Struct("<cxHHIqQ")
END = HEAD.pack(b"e", 0, 0, 0, 0, 0)


def entry(
    kind: bytes, name: bytes = b"", target: bytes = b"", mode: int = 0o644, size: int = 0, time: int = 1
) -> bytes:
    return HEAD.pack(kind, len(name), len(target), mode, time, size) + name + target


def sparse(name: bytes, data: bytes, at: int, size: int, tail: bytes = b"") -> bytes:
    """A file of version 2: its head, one part and what comes after."""
    part = struct.pack("<IQQ", 1, at, len(data)) + data
    return (
        entry(b"f", name, size=size)
        + part
        + (struct.pack("<I", len(tail)) + tail if tail else b"")
        + struct.pack("<I", 0)
    )


def copies() -> list[bytes]:
    tree = (
        entry(b"d", mode=0o755) + entry(b"f", b"a", size=3) + b"abc" + entry(b"d", b"e") + entry(b"l", b"e/l", b"../a")
    )
    return [
        b"d" + tree,
        b"c" + tree,
        b"f" + entry(b"f", size=4) + b"text",
        b"n" + entry(b"l", target=b"../outside"),
        b"l" + entry(b"f", size=1) + b"x",
        b"d" + entry(b"l", target=b"..") + entry(b"f", b"outside", size=1) + b"x",
        b"d" + entry(b"d") + entry(b"l", b"a", b"/tmp") + entry(b"f", b"a/b", size=1) + b"x",
        b"d"
        + HELLO
        + entry(b"d")
        + sparse(b"a", b"abc", 4096, 9000, b"more")
        + entry(b"d", b"e")
        + entry(b"l", b"e/l", b"../a")
        + END,
        b"c"
        + HELLO
        + entry(b"d")
        + entry(b"p", b"a")
        + entry(b"c", b"b", size=1 << 32 | 3)
        + sparse(b"c", b"x", 0, 1)
        + END,
        b"f" + HELLO + sparse(b"", b"text", 0, 4) + END,
    ]


def tars() -> list[bytes]:
    found = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with closing(tarfile.open(fileobj=out, mode="w", format=form)) as archive:
            for name, kind in (("d", tarfile.DIRTYPE), ("d/" + "n" * 120, tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.size = kind, 4 * (kind == tarfile.REGTYPE)
                member.linkname = "d" * (kind == tarfile.SYMTYPE)
                archive.addfile(member, io.BytesIO(b"text"))
        found.append(out.getvalue())
    small = found[0][:1536] + bytes(1024)
    return [*found, gzip.compress(small, mtime=0), bz2.compress(small), lzma.compress(small), zstandard.compress(small)]


def guests() -> list[bytes]:
    """What a guest says in a run."""
    ready = frame(messages.READY, struct.pack("<I", 1))
    text = frame(messages.STDOUT, b"out") + frame(messages.STDERR, b"err") + frame(messages.LOG, b"\x1b[2J")
    return [
        ready + text + frame_number(messages.CREDIT, 5) + frame_number(messages.EXIT, 7),
        frame(messages.ERROR, b"no \xff\n\x1b"),
        HEADER.pack(PAYLOAD_MAX + 1, messages.STDOUT, 0, 0) + bytes(10) + ready,
        _stream(copies()[0][1:]),
    ]


def steps() -> list[bytes]:
    request = frame(messages.EXEC, b"cmd=true\0")
    several = (
        b"f"
        + bytes([3, 0, 0x12, len(request)])
        + request
        + bytes([4, 9, 0x17, messages.STDOUT, 0x1F, messages.EXIT, 0x15, 9, 0x16, 0])
    )
    said = guests()[0]
    return [several, b"d" + bytes([0, len(said)]) + said + b"\x04\x01\x05\xff", several[:1] + several[1:] * 4]


_KINDS = tuple(bytes([kind]) for kind in sorted(messages.FROM_GUEST | messages.FROM_CLIENT))
_FRAMES = (*(frame(kind[0]) for kind in _KINDS), frame_number(messages.EXIT, 1), frame_number(messages.CREDIT, 1 << 31), struct.pack("<I", REQUEST_MAX))  # fmt: skip
_COPY_WORDS = (
    entry(b"d"),
    entry(b"f"),
    entry(b"l", b"a", b"b"),
    entry(b"d", b"a"),
    entry(b"f", b"a/b"),
    b"../",
    b"/",
    b"\0",
    b"a" * 256,
)
TARGETS = {
    "frames": Target(decoder, lambda: [b"\7" + said for said in guests()], _FRAMES),
    "router": Target(router, steps, _FRAMES, refuses=False),
    "session": Target(session, guests, _FRAMES),
    "program": Target(program, guests, _FRAMES),
    "cp-out": Target(copy_out, copies, _COPY_WORDS),
    "cp-tar": Target(copy_tar, lambda: [one[1:] for one in copies()], _COPY_WORDS),
    "cp-in": Target(copy_in, tars, (b"ustar\x0000", b"ustar  \0", b"GNU.sparse.map=", b"path=", b"size=", b"11 "), max_bytes=8192),
}  # fmt: skip
