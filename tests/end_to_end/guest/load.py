"""In a guest with --allow: a load on its proxy. Prints a dictionary of what came of each."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

PORT, KIND = int(sys.argv[1]), sys.argv[2]
PROXY = ("127.0.0.1", 3128)


def tunnel() -> socket.socket:
    sock = socket.create_connection(PROXY, 120)
    sock.sendall(b"CONNECT app.test:%d HTTP/1.1\r\n\r\n" % PORT)
    out = b""
    while b"\r\n\r\n" not in out:
        piece = sock.recv(4096)
        if not piece:
            raise OSError("refused")
        out += piece
    if b" 200 " not in out:
        raise OSError(out.decode())
    return sock


def get(sock: socket.socket, path: str) -> None:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: app.test:{PORT}\r\n\r\n".encode())


def slow_and_fast() -> dict[str, int]:
    """Forty that read nothing of a large answer, and one that reads all of one."""
    slow = [tunnel() for _ in range(40)]
    for sock in slow:
        get(sock, "/large/50000000")
    with tunnel() as fast:
        get(fast, "/large/4000000")
        count = 0
        while count < 4_000_000:
            count += len(fast.recv(1 << 16))
    return {"slow": len(slow), "fast": count}


def half_open() -> dict[str, int]:
    """A hundred that end their side and go on to read, and a hundred that say half a request."""
    ended, count = [tunnel() for _ in range(100)], 0
    for sock in ended:
        get(sock, "/x")
        sock.shutdown(socket.SHUT_WR)
    for sock in ended:
        while sock.recv(4096):
            count += 1
    half = [socket.create_connection(PROXY, 60) for _ in range(100)]
    for sock in half:
        sock.sendall(b"CONNECT app.t")
    return {"answered": count, "half": len(half)}


def opens() -> dict[str, int]:
    """Ten thousand connections one after the other, in ten threads; each is left at once."""
    count = [0] * 10

    def run(number: int) -> None:
        for _ in range(1000):
            with contextlib.suppress(OSError), socket.create_connection(PROXY, 60) as sock:
                sock.sendall(b"CONNECT nobody.test:1 HTTP/1.1\r\n\r\n")
                count[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"opened": sum(count)}


def bogus() -> dict[str, int]:
    """What is no HTTP, for ten seconds, as fast as it goes."""
    end, count, refused = time.monotonic() + 10, 0, 0
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(PROXY, 60) as sock:
            sock.sendall(os.urandom(1 << 14))
            count += 1
            refused += b"403" in sock.recv(4096)
    return {"sent": count, "refused": refused}


print({"slow": slow_and_fast, "half": half_open, "opens": opens, "bogus": bogus}[KIND]())
