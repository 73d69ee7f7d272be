"""Bytes through the keeper (--allow) beside QEMU's own network or passt: whole `runner exec` commands, in both directions."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from bench import guest
from bench.measure import Contender
from bench.rows import Row
from bench.work import Bench, clean

RUNNER = (sys.executable, "-m", "runner")
BYTES, SMALL_BYTES = 64 << 20, 1 << 20
NAME_AT = "198.18.0.1"  # of the first name of --allow, in the guest
HOST_AT = "10.0.2.2"  # this host by QEMU's own network


def rows(bench: Bench, size: int) -> list[Row]:
    """Return a row for bytes to the guest, and one for bytes from it."""
    room = bench.work / "network"
    room.mkdir()
    store = {"ROOTDISK_STORE": str(room / "store")}
    environment = {**os.environ, **store}
    boots = {"allow": ["--add-host", "bench.test:127.0.0.1"], "user": ["--network", "user"]}
    try:
        reference = guest.reference(bench, room)
        made = []
        with _serving(size) as (reads, sends):
            rules = [word for port in (reads, sends) for word in ("--allow", f"bench.test:{port}")]
            for name, options in boots.items():
                more = rules if name == "allow" else []
                command = [*RUNNER, "boot", "-d", "--name", name, *options, *more, reference, "wait"]
                subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            for what, port, count in (("to a guest", sends, size), ("from a guest", reads, -size)):
                through, directly = (
                    Contender(
                        name, [*RUNNER, "exec", name, "/small", place, str(port), str(count)], lambda: None, store
                    )
                    for name, place in (("allow", NAME_AT), ("user", HOST_AT))
                )
                ours, theirs = bench.measured(through, directly)
                row = Row(f"{size >> 20} MiB {what}, --allow", "--network user", {"wall": 1.25}, ours, theirs)
                made.append(row)
        return made
    finally:
        subprocess.run([*RUNNER, "rm", "--force", *boots], env=environment, stdout=subprocess.DEVNULL, check=False)
        clean(room)


@contextlib.contextmanager
def _serving(size: int) -> Iterator[tuple[int, int]]:
    """Yield the ports of a server that reads what comes, and of one that sends `size` bytes."""
    piece = bytes(1 << 20)

    def read(sock: socket.socket) -> None:
        left = size
        while left > 0 and (data := sock.recv(1 << 20)):
            left -= len(data)

    def send(sock: socket.socket) -> None:
        for at in range(0, size, len(piece)):
            sock.sendall(piece[: size - at])

    def serve(listener: socket.socket, work: object) -> None:
        assert callable(work)
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with contextlib.suppress(OSError), sock:
                    work(sock)

    with socket.create_server(("127.0.0.1", 0)) as reads, socket.create_server(("127.0.0.1", 0)) as sends:
        for listener, work in ((reads, read), (sends, send)):
            threading.Thread(target=serve, args=(listener, work), daemon=True).start()
        yield reads.getsockname()[1], sends.getsockname()[1]
