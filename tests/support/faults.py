"""A proxy before a real registry that misbehaves on purpose, and remembers what it was asked and what it gave.

with run_faults(registry.name) as proxy:
    proxy.add(Fault("short", path="/blobs/", times=1))
    parse_reference(f"{proxy.name}/some/image:v1")
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tests.support.registry import QuietHandler, QuietServer, serve

Kind = Literal[
    "short", "wrong", "long", "shifted", "status", "stall", "reset", "drip", "drip-head", "huge-head", "whole", "redirect",
    "cut", "as", "part",
]  # fmt: skip

PIECE_BYTES = 32 << 10
WRONG_EVERY = 32 << 10  # bytes: no chunk of a wrong answer is right
ALWAYS = 1 << 30
MEET_S = 20.0


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path holds `path`, after the first `skip` of them."""

    kind: Kind
    path: str = "/"
    times: int = 1
    method: str = "GET"
    skip: int = 0
    status: int = 503  # of "status", which is not passed on, and "as", which is
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"  # of "status"
    target: str = ""  # of "redirect": a URL; the same path again where there is none
    # Bytes of the body before "short", "stall" and "reset", of the request's before "cut", of the range that is given in "part".
    after: int = 1000
    seconds: float = 30  # of "stall"; between the bytes of "drip" and "drip-head"


@dataclass
class FaultProxy:
    name: str  # host:port
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    served: list[tuple[str, int, int]] = field(default_factory=list)  # path, from which byte on, how many
    taken: list[tuple[str, int]] = field(default_factory=list)  # path, bytes of a request's body that were passed on
    # Uploads that go on after a break, as the specification has them and docker-registry does not: path, what has arrived.
    uploads: dict[str, bytes] | None = None
    peers: set[tuple[str, int]] = field(default_factory=set)  # one a connection
    giving: int = 0  # answers under way
    most_giving: int = 0
    pause_s: float = 0  # after each piece of a body
    wrong_at: int | None = None  # of a blob whose path holds `wrong_in`: a byte that arrives wrong in every part
    wrong_in: str = "/"
    # Requests whose path holds the key are answered when as many of them are there as the barrier counts; else they fail.
    together: dict[str, threading.Barrier] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *faults: Fault) -> None:
        self.faults += faults

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path in path:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def bytes_of(self, path: str) -> int:
        return sum(count for name, _, count in self.served if path in name)


@contextlib.contextmanager
def run_faults(upstream: str) -> Iterator[FaultProxy]:
    """A proxy for the plain http registry at `upstream`, host:port."""

    class Handler(QuietHandler):
        def setup(self) -> None:
            super().setup()
            # What lies in buffers was served, but never arrived where the client is killed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)

        def forward(self) -> None:
            method = self.command
            proxy.seen.append((method, self.path, dict(self.headers)))
            proxy.peers.add(self.client_address)
            length = int(self.headers.get("Content-Length") or 0)
            for barrier in [barrier for path, barrier in proxy.together.items() if path in self.path]:
                barrier.wait(MEET_S)
            fault = proxy.take(method, self.path)
            kind = fault.kind if fault else ""
            body = self.rfile.read(min(length, fault.after) if fault and kind == "cut" else length)
            if body:
                proxy.taken.append((self.path, len(body)))
            if proxy.uploads is not None and "/blobs/uploads/" in self.path and kind != "status":
                self.upload(method, body, whole=len(body) == length)
                return
            if kind == "cut":
                self.cut(body)
                return
            if len(body) < length:  # the client has gone
                self.close_connection = True
                return
            if fault and kind == "status":
                self.send(fault.status, fault.body, **fault.headers)
                return
            if fault and kind == "redirect":
                self.send(307, b"", Location=fault.target or self.path)
                return
            sent = {k: v for k, v in self.headers.items() if kind != "whole" or k.lower() != "range"}
            status, headers, data = self.ask(method, body, sent)
            if kind == "whole":  # a server without ranges offers none
                headers = {k: v for k, v in headers.items() if k.lower() != "accept-ranges"}
            if kind == "wrong":
                wrong = bytearray(data)
                for at in range(len(data) // 2 % WRONG_EVERY, len(data), WRONG_EVERY):
                    wrong[at] ^= 1
                data = bytes(wrong)
            if kind == "long":
                data += b"more"
                headers["Content-Length"] = str(len(data))
            if fault and kind == "as":
                status = fault.status
                headers = {k: v for k, v in headers.items() if k != "Docker-Content-Digest"} | fault.headers
            start = int(headers.get("Content-Range", "bytes 0-").split()[1].partition("-")[0])
            is_part = status == 206 and proxy.wrong_in in self.path
            if proxy.wrong_at is not None and is_part and 0 <= (at := proxy.wrong_at - start) < len(data):
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            if kind == "shifted" and status == 206:
                headers["Content-Range"] = headers["Content-Range"].replace(f"{start}-", f"{start + 1}-")
            if fault and kind == "part" and status == 206:
                size, data = len(data), data[: fault.after]
                headers["Content-Range"] = headers["Content-Range"].replace(
                    f"-{start + size - 1}/", f"-{start + len(data) - 1}/"
                )
                headers["Content-Length"] = str(len(data))
            if kind == "huge-head":
                headers["X-Filler"] = "x" * 200_000
            if fault and kind == "drip-head":
                self.drip(b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 10_000 + b"\r\n\r\n", fault.seconds)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not fault or kind in ("wrong", "whole", "long", "shifted", "huge-head", "as", "part"):
                self.give(start, data)
                return
            if kind == "drip":
                self.drip(data, fault.seconds)
                return
            self.give(start, data[: fault.after])
            self.close_connection = True
            if kind == "stall":
                self.wait(fault.seconds)
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def ask(self, method: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=30)
            try:
                connection.request(method, self.path, body or None, headers)
                answer = connection.getresponse()
                hop = ("transfer-encoding", "connection", "date")
                kept = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
                return answer.status, kept, answer.read()
            finally:
                connection.close()

        def cut(self, body: bytes) -> None:
            """Pass on a part of the request, and break both connections."""
            host, _, port = upstream.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=30) as sock:
                head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
                sock.sendall(f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            self.close_connection = True

        def upload(self, method: str, body: bytes, whole: bool) -> None:
            """An upload of the proxy's own, given to the registry when it is complete."""
            assert proxy.uploads is not None
            path, _, query = self.path.partition("?")
            if method == "POST":
                proxy.uploads[f"{path}{len(proxy.uploads)}"] = b""
                self.send(202, b"", Location=f"{path}{len(proxy.uploads) - 1}")
                return
            start = int(self.headers.get("Content-Range", "0-").partition("-")[0])
            if method == "PUT" and start != len(proxy.uploads[path]):
                self.send(416, b"{}")
                return
            proxy.uploads[path] += body
            if method == "GET":
                self.send(204, b"", Location=path, Range=f"0-{max(len(proxy.uploads[path]) - 1, 0)}")
            elif not whole:
                self.close_connection = True
            else:
                self.path = path.rpartition("/")[0] + "/"
                _, headers, _ = self.ask("POST", b"", {"Host": upstream})
                self.path = f"{headers['Location']}&{query}"
                status, _, answer = self.ask("PUT", proxy.uploads[path], {"Host": upstream})
                self.send(status, answer)

        def give(self, start: int, data: bytes) -> None:
            """Send `data`. It is among what was served before the client can have all of it."""
            count = 0
            with proxy.lock:
                proxy.giving += 1
                proxy.most_giving = max(proxy.most_giving, proxy.giving)
            try:
                while len(data) - count > PIECE_BYTES:
                    self.write(data[count : count + PIECE_BYTES])
                    count += PIECE_BYTES
            except BaseException:
                self.gave(start, count)
                raise
            self.gave(start, len(data))
            self.write(data[count:])

        def write(self, piece: bytes) -> None:
            self.wfile.write(piece)
            if proxy.pause_s:
                self.wait(proxy.pause_s)

        def gave(self, start: int, count: int) -> None:
            with proxy.lock:
                proxy.giving -= 1
                proxy.served.append((self.path, start, count))

        def drip(self, data: bytes, seconds: float) -> None:
            self.close_connection = True
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wait(seconds)

        def wait(self, seconds: float) -> None:
            """Sleep, or break off at the end of the server."""
            assert isinstance(self.server, QuietServer)
            if self.server.ended.wait(seconds):
                raise ConnectionAbortedError

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

    with serve(Handler) as url:
        proxy = FaultProxy(urlsplit(url).netloc)
        yield proxy
