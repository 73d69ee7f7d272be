"""Connections whose waits end: each wait for an answer's head, or for more of its body, has a deadline.

A socket's own time-out starts again with every byte, so a server that trickles a header, or the length of a chunk, could
hold its reader for ever. One thread looks after all waits; and all of them can be broken off at once, which a fetch
over several connections needs when one fails or the user presses Ctrl-C.

They go to addresses that were looked at: rootdisk/registry/addresses.py.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from rootdisk.registry.addresses import Reach

LOOK_S = 0.1


class Watch:
    """The sockets that are being waited on."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.reach = Reach()
        self._lock = threading.Lock()
        self._waits: dict[object, tuple[socket.socket, float]] = {}  # until when, time.monotonic()
        self._sockets: WeakKeyDictionary[urllib3.BaseHTTPResponse, socket.socket] = WeakKeyDictionary()
        self._looking = False

    def stop(self) -> None:
        """Break off every wait there is and will be: TimeoutError."""
        with self._lock:
            self.stopped.set()
            for sock, _ in self._waits.values():
                _break(sock)

    def adopt(self, pool: Any, *, home: bool) -> None:
        """Look after the connections that `pool` makes from now on; `home` says that they are to the registry itself."""
        kind = _TLSConnection if isinstance(pool, urllib3.HTTPSConnectionPool) else _Connection
        # The proxy is the user's choice.
        reach = self.reach if pool.proxy is None else None
        pool.ConnectionCls = functools.partial(kind, watch=self, reach=reach, home=home)

    def head(self, connection: HTTPConnection) -> urllib3.HTTPResponse:
        """The answer to what `connection` has asked, its head complete within the connection's time-out."""
        sock = getattr(connection.sock, "socket", connection.sock)  # through a TLS proxy, urllib3's SSLTransport
        assert isinstance(sock, socket.socket)
        assert isinstance(connection.timeout, int | float)
        with self._within(sock, connection.timeout):
            response = HTTPConnection.getresponse(connection)
        self._sockets[response] = sock
        return response

    def read1(self, response: urllib3.BaseHTTPResponse, max_bytes: int, seconds: float) -> bytes:
        """What has arrived of a body, b"" at its end, within `seconds`."""
        with self._within(self._sockets[response], seconds):
            data = response.read1(max_bytes, decode_content=False)
            if response.length_remaining == 0:
                # http.client notices the end only here, and then the connection can be used again.
                response.read(1, decode_content=False)
            return data

    @contextlib.contextmanager
    def _within(self, sock: socket.socket, seconds: float) -> Iterator[None]:
        key = object()
        with self._lock:
            if self.stopped.is_set():
                raise TimeoutError("broken off")
            self._waits[key] = sock, time.monotonic() + seconds
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="runner watch", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                # Bytes that come out of a broken socket are not to be believed.
                broken = self._waits.pop(key, None) is None or self.stopped.is_set()
            if broken:
                raise TimeoutError("timed out") from None

    def _look(self) -> None:
        """Break what waits too long; ends where nothing waits."""
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                now = time.monotonic()
                for key, (sock, until) in list(self._waits.items()):
                    if now > until:
                        del self._waits[key]
                        _break(sock)
                if not self._waits:
                    self._looking = False
                    return


class _Watched:
    """Mixed into urllib3's connections."""

    _dns_host: str
    _address = ""  # that it is connected to, if that was looked at

    def __init__(self, *args: Any, watch: Watch, reach: Reach | None, home: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch, self._reach, self._home = watch, reach, home

    def getresponse(self) -> Any:
        assert isinstance(self, HTTPConnection)
        response = self._watch.head(self)
        # Not before it has answered: whoever is at an address where its name led once, and says nothing, is not it.
        if self._home and self._reach is not None and self._address:
            self._reach.arrived(self._address)
        return response

    def _new_conn(self) -> socket.socket:
        """Resolve, choose, and connect to what was chosen: nothing is resolved a second time."""
        assert isinstance(self, HTTPConnection)
        connect = HTTPConnection._new_conn
        if self._reach is None:
            return connect(self)
        name, port = self._dns_host, self.port or 0
        addresses = self._reach.choose(name.strip("[]"), port, _resolved(self, name.strip("[]")), home=self._home)
        try:
            for number, address in enumerate(addresses):
                self._dns_host = address
                try:
                    sock = connect(self)
                except (NewConnectionError, ConnectTimeoutError):
                    if number + 1 == len(addresses):
                        raise
                    continue
                self._address = address
                return sock
        finally:
            self._dns_host = name
        raise NewConnectionError(self, "no address")


class _Connection(_Watched, HTTPConnection):
    pass


class _TLSConnection(_Watched, HTTPSConnection):
    pass


def _resolved(connection: HTTPConnection, name: str) -> list[str]:
    """The addresses of `name`, best first; an IPv6 one with its zone."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as err:
        raise NameResolutionError(name, connection, err) from err
    families = (socket.AF_INET, socket.AF_INET6)
    numeric = (socket.getnameinfo(place, socket.NI_NUMERICHOST)[0] for family, *_, place in found if family in families)
    return list(dict.fromkeys(numeric))


def _break(sock: socket.socket) -> None:
    """Wake who reads from or writes to it. Not SSLSocket's own way, which would give out what is still encrypted."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
