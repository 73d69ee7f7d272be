"""The program of relay.py: `relay_process.py tcp:FD:PORT udp:FD:PORT … [user:UID:GID]` relays each socket to a port of 127.0.0.1.

It runs alone, without this package, and loads nothing after it has become another user, who may see none of Python's files. At most CONNECTIONS_MAX connections, and as many UDP clients, are served at once; others wait or
are dropped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time

CONNECTIONS_MAX = 512
PIECE_BYTES = 64 << 10
PR_SET_PDEATHSIG = 1  # linux/prctl.h
IDLE_S = 60.0  # after which a UDP client is forgotten


def relay_tcp(listener: socket.socket, port: int) -> None:
    """Take connections for ever."""
    places = threading.BoundedSemaphore(CONNECTIONS_MAX)
    while True:
        places.acquire()
        try:
            client, _ = listener.accept()
        except OSError:
            places.release()
            time.sleep(0.1)  # out of descriptors
            continue
        threading.Thread(target=_carry, args=(client, port, places), daemon=True).start()


def _carry(client: socket.socket, port: int, places: threading.BoundedSemaphore) -> None:
    """Carry one connection, both ways, until both sides have ended theirs."""
    with contextlib.suppress(OSError), client, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as guest:
        guest.connect(("127.0.0.1", port))
        back = threading.Thread(target=_pump, args=(guest, client), daemon=True)
        back.start()
        _pump(client, guest)
        back.join()
    places.release()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(PIECE_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def relay_udp(listener: socket.socket, port: int) -> None:
    """Give each client a socket of its own, whose answers are the client's."""
    clients: dict[tuple[str, int], tuple[socket.socket, float]] = {}
    while True:
        owners = {sock: client for client, (sock, _) in clients.items()}
        ready, _, _ = select.select([listener, *owners], [], [], IDLE_S)
        now = time.monotonic()
        for sock in ready:
            with contextlib.suppress(OSError):
                if sock is not listener:
                    listener.sendto(sock.recv(PIECE_BYTES), owners[sock])
                    continue
                data, client = listener.recvfrom(PIECE_BYTES)
                if client not in clients and len(clients) < CONNECTIONS_MAX:
                    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    own.connect(("127.0.0.1", port))
                    clients[client] = (own, now)
                if client in clients:
                    clients[client] = (clients[client][0], now)
                    clients[client][0].send(data)
        for client, (sock, last) in list(clients.items()):
            if now - last > IDLE_S:
                sock.close()
                del clients[client]


def main(words: list[str]) -> None:
    """Relay what each word says, until the process is killed."""
    threads = []
    libc, parent = ctypes.CDLL(None), os.getppid()
    for word in words:
        protocol, fd, port = word.split(":")
        if protocol == "user":
            os.setgroups([])
            os.setgid(int(port))
            os.setuid(int(fd))
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the kernel forgets it when the user changes
            if os.getppid() != parent:
                return
            continue
        target = relay_tcp if protocol == "tcp" else relay_udp
        threads.append(threading.Thread(target=target, args=(socket.socket(fileno=int(fd)), int(port)), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
