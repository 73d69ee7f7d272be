"""In a guest with --allow: what a program finds, and what answers it gets. Prints a dictionary."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

PORT = int(sys.argv[1])


def ask(data: bytes, place: tuple[str, int] = ("127.0.0.1", 3128)) -> str:
    out = b""
    try:
        with socket.create_connection(place, 30) as sock:
            sock.sendall(data)
            while piece := sock.recv(1 << 16):
                out += piece
    except OSError as err:
        out += f"{type(err).__name__} {err.errno}".encode()
    return out[-400:].decode("latin-1")


def resolves(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as err:
        return type(err).__name__


def many(count: int) -> list[str]:
    """The answers of as many connections at once, which all wait until the last is there."""
    answers: list[str] = []
    barrier = threading.Barrier(count)

    def one() -> None:
        with socket.create_connection(("127.0.0.1", 3128), 60) as sock:
            sock.sendall(b"CONNECT app.test:%d HTTP/1.1\r\n\r\n" % PORT)
            first = sock.recv(200)
            barrier.wait(60)
            answers.append(first.split(b"\r\n")[0].decode())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def large(size: int) -> int:
    """How many bytes come, read slowly at first."""
    count = 0
    with socket.create_connection(("app.test", PORT), 60) as sock:
        sock.sendall(b"GET /large/%d HTTP/1.0\r\n\r\n" % size)
        time.sleep(1)
        while piece := sock.recv(1 << 16):
            count += len(piece)
    return count


def upload(size: int) -> str:
    with socket.create_connection(("app.test", PORT), 60) as sock:
        sock.sendall(b"POST /upload HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % size)
        sock.sendall(bytes(size))
        out = b""
        while piece := sock.recv(1 << 16):
            out += piece
    return out.rpartition(b"\r\n\r\n")[2].decode()


port = str(PORT).encode()
answers = {
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "environment": {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
    "resolv.conf": Path("/etc/resolv.conf").read_text(),
    "absolute": ask(b"GET http://app.test:" + port + b"/a HTTP/1.1\r\nHost: app.test:" + port + b"\r\n\r\n"),
    "tunnel": ask(b"CONNECT app.test:" + port + b" HTTP/1.1\r\n\r\nGET /b HTTP/1.0\r\n\r\n"),
    "transparent": ask(b"GET /c HTTP/1.0\r\n\r\n", ("app.test", PORT)),
    "other host": ask(b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n"),
    "other port": ask(b"CONNECT app.test:22 HTTP/1.1\r\n\r\n"),
    "loopback": ask(b"CONNECT 127.0.0.1:" + port + b" HTTP/1.1\r\n\r\n"),
    "gateway": ask(b"x", ("10.0.2.2", PORT)),
    "public": ask(b"x", ("1.1.1.1", 443)),
    "by name": resolves("app.test"),
    "wild": resolves("x.wild.test"),
    "nobody": resolves("evil.test"),
    "large": large(3_000_000),
    "upload": upload(3_000_000),
    "many": many(int(sys.argv[2])),
}
print(answers, flush=True)
