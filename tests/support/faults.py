"""A proxy before a real registry that misbehaves on purpose.

with run_faults(registry.name) as proxy:
    proxy.add(Fault("short", path="/blobs/", times=1))
    parse_reference(f"{proxy.name}/some/image:v1")
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tests.support.registry import QuietHandler, serve

Kind = Literal["short", "wrong", "status", "stall", "reset", "whole", "redirect"]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path holds `path`."""

    kind: Kind
    path: str = "/"
    times: int = 1
    method: str = "GET"
    status: int = 503  # of "status"
    headers: dict[str, str] = field(default_factory=dict)
    target: str = ""  # of "redirect": a URL
    after: int = 1000  # bytes of the body before "short", "stall" and "reset"
    seconds: float = 30  # of "stall"


@dataclass
class FaultProxy:
    name: str  # host:port
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
        return None


@contextlib.contextmanager
def run_faults(upstream: str) -> Iterator[FaultProxy]:
    """A proxy for the plain http registry at `upstream`, host:port."""

    class Handler(QuietHandler):
        def forward(self) -> None:
            method = self.command
            proxy.seen.append((method, self.path, dict(self.headers)))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.take(method, self.path)
            kind = fault.kind if fault else ""
            if fault and kind == "status":
                self.send(fault.status, b"{}", **fault.headers)
                return
            if fault and kind == "redirect":
                self.send(307, b"", Location=fault.target)
                return
            headers = {k: v for k, v in self.headers.items() if kind != "whole" or k.lower() != "range"}
            upstream_connection = http.client.HTTPConnection(upstream, timeout=30)
            upstream_connection.request(method, self.path, body or None, headers)
            answer = upstream_connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date"):
                    self.send_header(name, value)
            self.end_headers()
            upstream_connection.close()
            if fault and kind == "wrong":
                data = bytes([data[0] ^ 1]) + data[1:]
            if not fault or kind in ("wrong", "whole"):
                self.wfile.write(data)
                return
            self.wfile.write(data[: fault.after])
            self.wfile.flush()
            self.close_connection = True
            if kind == "stall":
                time.sleep(fault.seconds)
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = forward  # noqa: N815

    with serve(Handler) as url:
        proxy = FaultProxy(urlsplit(url).netloc)
        yield proxy
