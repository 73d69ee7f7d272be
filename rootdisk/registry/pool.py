"""Connections that are kept for further requests, and spare ones that are opened beside the first."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from rootdisk.registry.connections import Connection
from rootdisk.registry.deadlines import Watch

SPARE = "spare connection"  # name of a thread


class Way(NamedTuple):
    """Connections with the same way may be used for each other's requests."""

    origin: tuple[str, str, int]
    proxy: str


class Pool:
    """The connections of a session that are not in use. Threads may share it."""

    def __init__(self, watch: Watch, spares: int) -> None:
        """Prepare it. `spares` connections are opened beside the first, for requests that will be sent at once."""
        self._watch = watch
        self._idle: dict[Way, list[Connection]] = defaultdict(list)
        self._lock = threading.Lock()
        self._spares = spares
        self._opening: dict[Way, list[threading.Thread]] = {}  # that open them
        self._is_closed = False

    def take(self, way: Way, make: Callable[[], Connection], *, has_spares: bool) -> tuple[Connection, bool]:
        """Return a connection, and whether `make` has made it now. `has_spares` says if spare ones may be opened this way."""
        while True:
            with self._lock:
                connection = self._idle[way].pop() if self._idle[way] else None
                opening = self._opening.pop(way, ()) if connection is None else ()
            if connection is not None:
                if connection.is_usable:
                    return connection, False
                connection.close()
                continue
            if not opening:
                if self._spares and has_spares:
                    self._open_spares(way, make)
                return make(), True
            for thread in opening:
                thread.join()

    def put_back(self, way: Way, connection: Connection, is_usable: bool) -> None:
        """Keep a connection for another request, if it is usable."""
        with self._lock:
            if is_usable and not self._is_closed:
                self._idle[way].append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all connections that are not in use, and wait for threads that open some."""
        with self._lock:
            self._is_closed = True
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()
            opening = [thread for threads in self._opening.values() for thread in threads if thread.is_alive()]
        if opening:  # none may be in OpenSSL when this program ends: OpenSSL frees what they use
            self._watch.stop()
            for thread in opening:
                thread.join()

    def _open_spares(self, way: Way, make: Callable[[], Connection]) -> None:
        """Open connections while the first request is under way."""

        def open_one() -> None:
            """Open one. If that fails, the request that needs one tries again, and its error is told."""
            connection = make()
            try:
                connection.connect()
            except Exception:
                connection.close()
            else:
                self.put_back(way, connection, is_usable=True)

        with self._lock:
            count, self._spares = self._spares, 0
            threads = [threading.Thread(target=open_one, name=SPARE, daemon=True) for _ in range(count)]
            for thread in threads:  # within the lock: who finds them may join them
                thread.start()
            self._opening[way] = threads
